"""`dermlens batch`: images/s against `predict_many`, memory by number of inputs, and Ray with one and two workers.

    python benchmarks/batch.py [--images FOLDER] [--count 2000] [--rounds 3] [--few 1000] [--many 20000]
                               [--only speed ray memory]

Names of the folder's images are repeated to the wanted number, so that files come from the cache of the system: what is
measured is decoding, network and writing, not the disk. `predict_many` and batch run in turn in one process, so that a
busy machine slows both. Peak memory is that of a fresh process. A Ray rate counts from the first finished part on,
without the start of Ray and of its workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "images"
MEASURED = ("speed", "ray", "memory")


def write_names(folder: Path, count: int, path: Path) -> Path:
    """Write a list of `count` image names, the folder's over and over."""
    from dermlens.inference.listing import is_image_name
    from dermlens.inference.storage import walk

    names = [os.path.abspath(name) for name in walk(str(folder)) if is_image_name(name)]
    path.write_text("".join(f"{name}\n" for name in itertools.islice(itertools.cycle(names), count)))
    return path


def against_predict_many(names: Path, place: Path, rounds: int) -> dict[str, object]:
    """Return images/s of both, round by round; each includes loading the model."""
    from dermlens.inference.batch import open_job, run_job
    from dermlens.inference.predict import Predictor

    paths = names.read_text().splitlines()
    rates: dict[str, list[float]] = {"predict_many": [], "batch": []}
    for round_number in range(rounds):
        start = time.perf_counter()
        done = sum(1 for _ in Predictor().predict_many(paths))
        rates["predict_many"].append(done / (time.perf_counter() - start))
        with open_job([str(names)], place / f"local{round_number}") as job:
            start = time.perf_counter()
            run_job(job)
            rates["batch"].append(len(paths) / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pairs = [b / p for b, p in zip(rates["batch"], rates["predict_many"], strict=True)]
    rounded = {name: [round(value, 1) for value in values] for name, values in rates.items()}
    ratios = {"median_ratio": round(statistics.median(pairs), 3), "ratios": [round(pair, 3) for pair in pairs]}
    return {"images": len(paths), "medians": {k: round(v, 1) for k, v in medians.items()}, **ratios, **rounded}


def peak_memory(names: Path, out: Path) -> dict[str, float]:
    """Run the verb in a fresh process; return its seconds and peak resident megabytes."""
    command = [sys.executable, "-m", "dermlens", "batch", str(names), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}.")
    files = list(out.glob("part-*"))
    facts = {"seconds": round(time.perf_counter() - start, 1), "peak_mb": round(usage.ru_maxrss / 1024, 1)}
    return {**facts, "parts": len(files), "parquet_mb": round(sum(f.stat().st_size for f in files) / 1e6, 2)}


def ray_rate(names: Path, out: Path, workers: int) -> dict[str, float]:
    """Return images/s from the first finished part on."""
    from dermlens.inference.batch import Progress, Settings, open_job, run_job
    from dermlens.inference.ray_batch import ray_engine

    seen: list[tuple[float, int]] = []
    with open_job([str(names)], out, settings=Settings(part_rows=100)) as job:
        start = time.perf_counter()

        def report(progress: Progress) -> None:
            seen.append((time.perf_counter(), progress.rows))

        run_job(job, ray_engine(None, workers), report)
    passed_s = seen[-1][0] - seen[0][0]
    rows = sum(rows for _, rows in seen[1:])
    return {"images_per_s": round(rows / passed_s, 1), "start_s": round(seen[0][0] - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=EXAMPLES)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=MEASURED)
    options = parser.parse_args()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({**machine, "images": options.images.name, "load": os.getloadavg()[0]}), flush=True)
    with tempfile.TemporaryDirectory(prefix="dermlens-benchmark-") as folder:
        place = Path(folder)
        names = write_names(options.images, options.count, place / "names.txt")
        if "speed" in options.only:
            print(json.dumps({"speed": against_predict_many(names, place, options.rounds)}), flush=True)
        for workers in (1, 2, 1, 2) if "ray" in options.only else ():
            rate = ray_rate(names, place / f"ray{workers}-{time.time_ns()}", workers)
            print(json.dumps({"ray_workers": workers, **rate}), flush=True)
        for count in (options.few, options.many) if "memory" in options.only else ():
            listing = write_names(options.images, count, place / f"{count}.txt")
            print(json.dumps({"inputs": count, **peak_memory(listing, place / str(count))}), flush=True)


if __name__ == "__main__":
    main()
