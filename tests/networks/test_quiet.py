"""TensorFlow starts without a word on stderr, and stderr works afterwards."""

from __future__ import annotations

import os
import subprocess
import sys


def test_nothing_is_written_while_tensorflow_loads() -> None:
    program = (
        "import sys\nfrom dermlens.networks.backend import load_tensorflow\nload_tensorflow()\n"
        "import tensorflow\ntensorflow.constant(1) + 1\nprint('after', file=sys.stderr)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0 and done.stderr == "after\n"
