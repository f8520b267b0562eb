"""One image from a cold start: `dermlens predict` in a fresh process against Keras in one.

    python benchmarks/cold_predict.py [--repeats 20] [--image FILE]

Seconds and peak resident memory, and the ratio to a Keras program that loads a Lite0, reads the same file with OpenCV
and predicts, and to what it pays before its first line of work, `import tensorflow`. Measured in turn, so that a busy
machine slows all of them. Then the command on files of three sizes, and where a fresh process spends its time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import REPEATS, save, spread, times_faster, with_goal
from one_image import made

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "images" / "MEL_ISIC_0000029.jpg"

MAKE = """
import sys
from measure import classifiers
from dermlens.networks.backend import load_tensorflow
load_tensorflow()
classifiers("lite0")[0].save(sys.argv[1])
"""
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


def stages(image: Path) -> dict[str, float]:
    """Milliseconds of each step of one fresh process, and of the start and end of Python around them."""
    start = time.perf_counter()
    told = subprocess.check_output([sys.executable, "-c", STAGES, str(image)], text=True)
    whole = time.perf_counter() - start
    times = [float(value) for value in told.split()]
    found = {name: 1000 * (b - a) for name, a, b in zip(STEPS, times, times[1:], strict=False)}
    return {"start and end of Python": 1000 * (whole - (times[-1] - times[0])), **found}


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command once; return (seconds, peak resident megabytes)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed with status {status}.")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "lite0.keras"))
        subprocess.run([sys.executable, "-c", MAKE, model], check=True, cwd=Path(__file__).resolve().parent)
        commands = {
            "dermlens predict": [sys.executable, "-m", "dermlens", "predict", str(options.image), "--json"],
            "import tensorflow": [sys.executable, "-c", "import tensorflow"],
            "Keras": [sys.executable, "-c", KERAS, model, str(options.image)],
        }
        for command in commands.values():
            measure(command)  # once to warm the file cache
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                samples[name].append(measure(command))
        sizes = {}
        for name, path in made(Path(folder)).items():
            command = [sys.executable, "-m", "dermlens", "predict", str(path), "--json"]
            sizes[name] = spread([measure(command)[0] for _ in range(options.repeats)])
        split = [stages(options.image) for _ in range(options.repeats)]
    seconds, peaks = ({name: [pair[place] for pair in pairs] for name, pairs in samples.items()} for place in (0, 1))
    ratios = {}
    for other in ("import tensorflow", "Keras"):
        for what, found in (("seconds", seconds), ("peak memory", peaks)):
            ratio = times_faster(found["dermlens predict"], found[other])
            goal = 8 if (other, what) == ("Keras", "seconds") else None
            ratios[f"{what}, {other} / dermlens predict"] = with_goal(ratio, goal) if goal else ratio
    details = {"seconds": seconds, "peak resident memory, MB": peaks}
    spreads = {what: {name: spread(values) for name, values in by.items()} for what, by in details.items()}
    spreads["seconds, dermlens predict, by size of the file"] = sizes
    spreads["ms of a fresh process"] = {name: spread([row[name] for row in split]) for name in split[0]}
    save("cold_predict", ratios, {"image": options.image.name, **spreads})


if __name__ == "__main__":
    main()
