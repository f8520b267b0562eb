"""The container image: an ordinary user, no TensorFlow, and steps that work, as far as that shows without Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TOOLS = ("unshare", "setpriv", "curl")


def test_the_image_runs_as_an_ordinary_user() -> None:
    last_stage = DOCKERFILE.rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\d+):(\d+)$", last_stage, re.MULTILINE)
    assert user is not None and int(user[1]) >= 1000 and int(user[2]) >= 1000
    assert last_stage.index("USER") < last_stage.index("ENTRYPOINT")


def test_the_image_holds_only_what_serving_needs() -> None:
    pins = (ROOT / "requirements" / "serve.txt").read_text()
    assert not re.search(r"^(tensorflow|keras|torch|scikit-learn|pandas|ray)", pins, re.MULTILINE)
    assert "-r requirements/serve.txt" in DOCKERFILE and "--no-deps" in DOCKERFILE
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for name in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        assert {f"!{part}" for part in name.split()} <= set(ignored)


def test_the_command_in_the_image_exists() -> None:
    from typer.main import get_command

    from dermlens.cli.app import app

    verb = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    entry = re.search(r"^ENTRYPOINT \[(.+)\]$", DOCKERFILE, re.MULTILINE)
    assert entry is not None
    words = re.findall(r'"([^"]+)"', entry[1])
    assert words[:2] == ["dermlens", "serve"]
    offered = {name for parameter in verb.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= offered


@pytest.mark.long
def test_the_steps_make_a_server_for_an_ordinary_user_on_a_read_only_file_system(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)) or not Path("/usr/bin/python3").exists():
        pytest.skip(f"NOT RUN: needs root, /usr/bin/python3 and {', '.join(TOOLS)}")
    folder = Path("/var/tmp") / f"dermlens-container-{os.getpid()}"
    try:
        script = str(ROOT / "scripts" / "container_check.sh")
        done = subprocess.run([script, str(folder)], capture_output=True, text=True, timeout=900, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[0])
    assert answer["status"] in ("ok", "uncertain") and answer["diagnosis"]["code"] == "MEL"
