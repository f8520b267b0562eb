"""Every code block of README.md and docs/ runs, page by page, in a folder like a reader's.

What a page needs is there before it: `my_images`, `photo.jpg`, `runs/mine` (see conftest.py). Training takes seconds,
because `doc_blocks.CHEAPER` is added to the commands. `make test` runs the quick blocks, `make test-long` all of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import warnings
import webbrowser
from pathlib import Path

import pytest

import live
from dermlens import Predictor
from dermlens.bundle.bundle import load_bundle
from doc_blocks import CHEAPER, FIRST_TRAINING, PAGES, Block, Command, blocks, commands_of, plain, run_dermlens, words

ADDRESS = "http://127.0.0.1:8000"
EXIT_FINDINGS = 1


def holds(page: str, when: str) -> bool:
    """Tell whether a page has something that runs at this time."""
    return any(
        block.when == when and (block.language == "python" or any(c.when == when for c in commands_of(block)))
        for block in blocks(page)
        if block.language in ("sh", "python")
    )


@pytest.mark.parametrize("page", [page for page in PAGES if holds(page, "always")])
def test_the_quick_blocks_of_a_page_run(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, {"always"}, desk, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if holds(page, "long")])
def test_all_blocks_of_a_page_run(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, {"always", "long"}, desk, monkeypatch)


def run_page(page: str, when: set[str], desk: Path, patch: pytest.MonkeyPatch) -> None:
    """Run the blocks and commands of a page that are to run at such a time, in their order."""
    patch.setattr(webbrowser, "open", lambda *_, **__: False)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(live.in_thread(Predictor("default"))) if "curl " in text_of(page) else 0
        for block in (block for block in blocks(page) if block.when in when):
            if block.language == "python":
                run_python(block, desk)
            for command in commands_of(block) if block.language == "sh" else ():
                if command.when in when:
                    run_command(command, port, patch)


def text_of(page: str) -> str:
    return "".join(block.text for block in blocks(page) if block.language == "sh")


def run_python(block: Block, desk: Path) -> None:
    """Run a block as a script of its own, as a reader who copies it would."""
    script = desk / f"{Path(block.page).stem}_{block.line}.py"
    script.write_text(block.text, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


def run_command(command: Command, port: int, patch: pytest.MonkeyPatch) -> None:
    """Run one command; its exit code is 0, save where `--fail-on` finds something."""
    text = command.text
    if "DIGEST" in text:
        text = text.replace("DIGEST", load_bundle(Path("runs/mine/bundle")).sha256)
    if re.search(r"\bdermlens serve\b", text):
        serve(text, patch)
    elif text.startswith("dermlens ") and plain(text):
        allowed = (0, EXIT_FINDINGS) if "--fail-on" in text else (0,)
        assert run_dermlens(cheaper(words(text)[1:])) in allowed, command
    else:
        shell(text.replace(ADDRESS, f"http://127.0.0.1:{port}"))


def cheaper(arguments: list[str]) -> list[str]:
    """Return the arguments so that training takes seconds; the fixture's own only has to be found finished."""
    if arguments == FIRST_TRAINING:
        return [*arguments, "--resume"]
    return arguments if "--resume" in arguments else [*arguments, *CHEAPER.get(arguments[0], ())]


def serve(text: str, patch: pytest.MonkeyPatch) -> None:
    """Start the server with the line's options on a free port, ask whether it is ready, and stop it."""
    setting, _, options = text.rpartition("dermlens serve")
    if (match := re.match(r"(\w+)=", setting)) and here("openssl", text):
        script = f'{setting.strip()}; printf %s "${match[1]}"'
        patch.setenv(
            match[1],
            subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=600).stdout,
        )
    wanted = [word for word in words(options) if word != "--open"]
    with live.as_process("--drain", "0", *wanted) as (process, port):
        shell(f"curl http://127.0.0.1:{port}/readyz")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def shell(text: str) -> None:
    """Run a line with a shell and the `dermlens` of this environment; curl fails where the server says no."""
    program = text.split()[0]
    if program != "dermlens" and not here(program, text):
        return
    script = 'dermlens() { "$PYTHON" -m dermlens "$@"; }\n' + re.sub(r"^curl ", "curl -fsS ", text)
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, f"{text}\n{done.stderr}"


def here(program: str, text: str) -> bool:
    """Tell whether a program is on this machine; where it is not, the end of the run says what did not run."""
    found = shutil.which(program) is not None
    if not found:
        warnings.warn(f"NOT RUN, no {program} here: {text}", stacklevel=2)
    return found
