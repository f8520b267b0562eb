"""One prediction in a fresh process: `dermlens predict`, beside a Keras program and `import tensorflow` alone.

The Keras program loads a saved Lite0 and answers once. Peak memory is that of the process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import EXAMPLE, ROOT
from benchmarks.fresh import fresh, spent
from benchmarks.report import cell, ratio_table
from benchmarks.timing import REPEATS, classifiers, spread, times_faster, with_goal, write_sizes

OURS, GOAL = "dermlens predict", 8
KERAS = """
import sys
import cv2, keras
model = keras.models.load_model(sys.argv[1])
pixels = cv2.cvtColor(cv2.imread(sys.argv[2]), cv2.COLOR_BGR2RGB)
print(model.predict(cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_AREA)[None].astype("float32"), verbose=0))
"""
STAGES = """
import sys, time
times = [time.perf_counter()]
from dermlens import Predictor
times.append(time.perf_counter())
predictor = Predictor()
times.append(time.perf_counter())
for _ in range(2):
    predictor.predict(sys.argv[1])
    times.append(time.perf_counter())
print(*times)
"""
STEPS = ("import dermlens", "bundle read and graph compiled", "first answer", "second answer")


def run(*, repeats: int = REPEATS, image: Path = EXAMPLE) -> dict[str, Any]:
    """Return ratios of time and memory, by program; the time by size of the file and by step of the process."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "lite0.keras"))
        fresh(save_lite0, model)
        commands = {
            OURS: _predict(image),
            "import tensorflow": [sys.executable, "-c", "import tensorflow"],
            "Keras": [sys.executable, "-c", KERAS, model, str(image)],
        }
        for command in commands.values():
            spent(command)  # once to warm the file cache
        rounds = [{name: spent(command) for name, command in commands.items()} for _ in range(repeats)]
        sizes = {
            name: spread([spent(_predict(path)).seconds for _ in range(repeats)])
            for name, path in write_sizes(Path(folder)).items()
        }
        steps = [_steps(image) for _ in range(repeats)]
    taken = {what: {name: [getattr(row[name], what) for row in rounds] for name in commands}
             for what in ("seconds", "peak_mb")}  # fmt: skip
    ratios = {}
    for other in ("import tensorflow", "Keras"):
        for what, name in (("seconds", "seconds"), ("peak_mb", "peak memory")):
            ratio = times_faster(taken[what][OURS], taken[what][other])
            goal = GOAL if (other, what) == ("Keras", "seconds") else None
            ratios[f"{name}, {other} / {OURS}"] = with_goal(ratio, goal)
    return {
        "ratios": ratios,
        "image": image.name,
        **{what: {name: spread(values) for name, values in by.items()} for what, by in taken.items()},
        "seconds by size of the file": sizes,
        "ms of a fresh process": {name: spread([row[name] for row in steps]) for name in steps[0]},
    }


def save_lite0(path: str) -> None:
    """Save the network of the Keras program."""
    classifiers("lite0")[0].save(path)


def _predict(image: Path) -> list[str]:
    return [sys.executable, "-m", "dermlens", "predict", str(image), "--json"]


def _steps(image: Path) -> dict[str, float]:
    """Return milliseconds of each step of one fresh process, and of the start and end of Python around them."""
    start = time.perf_counter()
    printed = subprocess.check_output([sys.executable, "-c", STAGES, str(image)], text=True, cwd=ROOT)
    whole = time.perf_counter() - start
    times = [float(value) for value in printed.split()]
    found = {name: 1000 * (b - a) for name, a, b in zip(STEPS, times, times[1:], strict=False)}
    return {"start and end of Python": 1000 * (whole - (times[-1] - times[0])), **found}


def table(found: Mapping[str, Any]) -> str:
    """Return the ratios, and in a sentence the time and memory behind them."""
    sizes = "; ".join(f"{name}: {cell(value, 2)} s" for name, value in found["seconds by size of the file"].items())
    steps = ", ".join(f"{name} {value['median']:.0f}" for name, value in found["ms of a fresh process"].items())
    return (
        f"{ratio_table(found['ratios'])}\n\n"
        f"`{OURS}` takes {cell(found['seconds'][OURS], 2)} s and {found['peak_mb'][OURS]['median']:.0f} MB "
        f"({sizes}). Milliseconds of the process: {steps}."
    )
