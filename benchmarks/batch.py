"""`dermlens batch`: images/s against `predict_many`, memory by number of inputs, listing, Ray with one and two workers.

    python benchmarks/batch.py [--images FOLDER] [--count 2000] [--rounds 3] [--few 1000] [--many 20000]
                               [--workers 1 2 1 2] [--only speed ray memory listing] [--model default]

Names of the folder's images are repeated to the wanted number, so that files come from the cache of the system: what is
measured is decoding, network and writing, not the disk. `predict_many` and batch run in turn in one process, so that a
busy machine slows both. Peak memory is that of a fresh process. A Ray rate counts from the first finished part on,
without the start of Ray and of its workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "images"
MEASURED = ("speed", "ray", "memory", "listing")


def write_names(folder: Path, count: int, path: Path) -> Path:
    """Write a list of `count` image names, the folder's over and over."""
    from dermlens.batch.sources import is_image_name
    from dermlens.batch.storage import walk

    names = [os.path.abspath(name) for name in walk(str(folder), []) if is_image_name(name)]
    path.write_text("".join(f"{name}\n" for name in itertools.islice(itertools.cycle(names), count)))
    return path


def against_predict_many(names: Path, place: Path, rounds: int, model: str) -> dict[str, object]:
    """Return images/s and processor milliseconds an image of both, in turn; each includes loading the model.

    Processor time hardly depends on what else the machine does; the rate does.
    """
    from dermlens.batch.job import open_job, run_job
    from dermlens.inference.predictor import Predictor

    paths = names.read_text().splitlines()

    def predict_many(round_number: int) -> None:
        for _ in Predictor(model).predict_many(paths):
            pass

    def batch(round_number: int) -> None:
        with open_job([str(names)], place / f"local{round_number}", model=model) as job:
            run_job(job)

    for _ in Predictor(model).predict_many(paths[:32]):  # loads what is loaded once
        pass
    rates: dict[str, list[float]] = {"predict_many": [], "batch": []}
    cpu_ms: dict[str, list[float]] = {"predict_many": [], "batch": []}
    for round_number in range(rounds):
        for work in (predict_many, batch) if round_number % 2 else (batch, predict_many):
            start, start_cpu = time.perf_counter(), time.process_time()
            work(round_number)
            rates[work.__name__].append(round(len(paths) / (time.perf_counter() - start), 1))
            cpu_ms[work.__name__].append(round((time.process_time() - start_cpu) * 1000 / len(paths), 2))
    ratios = {
        "median_rate_ratio": round(statistics.median(map(operator.truediv, rates["batch"], rates["predict_many"])), 3),
        "median_cpu_ratio": round(statistics.median(map(operator.truediv, cpu_ms["batch"], cpu_ms["predict_many"])), 3),
    }
    return {"images": len(paths), **ratios, "images_per_s": rates, "cpu_ms_per_image": cpu_ms}


def peak_memory(names: Path, out: Path, model: str) -> dict[str, float]:
    """Run the verb in a fresh process; return its seconds and peak resident megabytes."""
    command = [sys.executable, "-m", "dermlens", "batch", str(names), "--out", str(out), "--model", model]
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {status}.")
    files = list(out.glob("part-*"))
    facts = {"seconds": round(time.perf_counter() - start, 1), "peak_mb": round(usage.ru_maxrss / 1024, 1)}
    facts["cpu_ms_per_image"] = round((usage.ru_utime + usage.ru_stime) * 1000 / len(names.read_text().splitlines()), 2)
    return {**facts, "parts": len(files), "parquet_mb": round(sum(f.stat().st_size for f in files) / 1e6, 2)}


def listing_rate(place: Path, count: int) -> dict[str, float]:
    """Return how many names of a list are listed in a second, and given out in units."""
    from dermlens.batch.sources import read_listing

    path = place / "listing.txt"
    path.write_text("".join(f"folder/{index:09d}.jpg\n" for index in range(count)))
    start = time.process_time()
    listing = read_listing([str(path)])
    listed = time.process_time()
    given = sum(len(unit.sources) for unit in listing.units(10_000))
    return {
        "names": given,
        "listed_per_cpu_s": round(count / (listed - start)),
        "given_out_per_cpu_s": round(count / (time.process_time() - listed)),
    }


def ray_rate(names: Path, out: Path, workers: int, model: str) -> dict[str, float]:
    """Return images/s from the first finished part on."""
    from dermlens.batch.job import Progress, Settings, open_job, run_job
    from dermlens.cluster.batch import ray_engine

    seen: list[tuple[float, int]] = []
    with open_job([str(names)], out, model=model, settings=Settings(part_rows=100)) as job:
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
    parser.add_argument("--workers", nargs="+", type=int, default=(1, 2, 1, 2))
    parser.add_argument("--model", default="default")
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=MEASURED)
    options = parser.parse_args()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({**machine, "images": options.images.name, "load": os.getloadavg()[0]}), flush=True)
    with tempfile.TemporaryDirectory(prefix="dermlens-benchmark-") as folder:
        place = Path(folder)
        names = write_names(options.images, options.count, place / "names.txt")
        if "speed" in options.only:
            print(json.dumps({"speed": against_predict_many(names, place, options.rounds, options.model)}), flush=True)
        if "listing" in options.only:
            print(json.dumps({"listing": listing_rate(place, 200_000)}), flush=True)
        for workers in options.workers if "ray" in options.only else ():
            rate = ray_rate(names, place / f"ray{workers}-{time.time_ns()}", workers, options.model)
            print(json.dumps({"ray_workers": workers, **rate}), flush=True)
        for count in (options.few, options.many) if "memory" in options.only else ():
            listing = write_names(options.images, count, place / f"{count}.txt")
            print(json.dumps({"inputs": count, **peak_memory(listing, place / str(count), options.model)}), flush=True)


if __name__ == "__main__":
    main()
