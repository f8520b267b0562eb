#!/bin/sh
# Make or update the virtual environment: scripts/venv.sh FOLDER REQUIREMENTS_FILE
# Uses the first working Python 3.11-3.13 (or $PYTHON), installs exactly the pinned packages, then dermlens itself, editable.
set -eu
folder=$1
pins=$2

works() { # is this command a Python 3.11-3.13 that really starts? (version-manager shims may exist and yet fail)
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

choose() { # the first one that can make a complete environment; else the first one that works at all
    spare=
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        works "$candidate" || continue
        "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1 && { echo "$candidate"; return; }
        spare=${spare:-$candidate}
    done
    echo "$spare"
}

if ! works "$folder/bin/python"; then
    python=$(choose)
    if [ -z "$python" ]; then
        echo "dermlens needs Python 3.11, 3.12 or 3.13, and none was found${PYTHON:+ under PYTHON=$PYTHON}." >&2
        echo "Install one, or name it: make demo PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    echo "Making $folder with $("$python" --version)."
    if "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        "$python" -m venv --clear "$folder"
    # Debian and Ubuntu split ensurepip off; a pip of the outer Python can still fill the environment.
    elif "$python" -m venv --clear --without-pip "$folder" && "$python" -m pip --python "$folder/bin/python" install -q pip; then
        echo "(This Python has no ensurepip; its own pip was used.)"
    else
        echo "$python can make no virtual environment: it has neither ensurepip nor pip." >&2
        echo "On Debian or Ubuntu: sudo apt install python3-venv; elsewhere name another Python: make demo PYTHON=..." >&2
        exit 1
    fi
fi

echo "Installing $(grep -c . "$pins") pinned packages ($pins) into $folder ..."
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$folder/bin/python" -m pip install --quiet --requirement "$pins"
"$folder/bin/python" -m pip install --quiet --no-deps --editable .
