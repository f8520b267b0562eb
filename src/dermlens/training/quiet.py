"""Load TensorFlow without its native chatter (which processor, no CUDA): a person waits here and reads every line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def load_tensorflow() -> None:
    """Import TensorFlow with its native log switched off; an error while importing is raised as always.

    Another TF_CPP_MIN_LOG_LEVEL than 3 (the package's default) shows the log.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        import tensorflow
    else:
        with _native_stderr_closed():
            import tensorflow
    del tensorflow


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Send file descriptor 2 to nowhere: some lines are written before TensorFlow reads its log level."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
