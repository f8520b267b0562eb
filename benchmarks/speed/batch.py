"""`dermlens batch`: images a second against `predict_many`, memory, listing, Ray, and `kill -9` at random moments.

Names of the folder's images are repeated to the wanted number, so that files come from the cache of the system: what is
measured is decoding, network and writing, not the disk. `predict_many` and batch run in turn in one process, so that a
busy machine slows both. Peak memory is that of a fresh process. A Ray rate counts from the first finished part on,
without the start of Ray and of its workers. After the kills the job is run to its end: it fails when a row is missing
or stands twice.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import CONSOLE, EXAMPLES, ROOT
from benchmarks.fresh import spent
from benchmarks.report import cell, markdown
from benchmarks.timing import spread

PARTS = ("speed", "memory", "listing", "ray", "kills")
LISTED = 200_000
CHOICES = {"only": PARTS}


def run(
    *,
    only: tuple[str, ...] = PARTS,
    images: Path = EXAMPLES,
    model: str = "default",
    count: int = 2000,
    rounds: int = 3,
    memory_counts: tuple[int, ...] = (1000, 20_000),
    workers: tuple[int, ...] = (1, 2),
    kills: int = 10,
    longest_s: float = 8.0,
    part_rows: int = 50,
    seed: int = 0,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what was asked for, and of the other parts what an earlier run found."""
    found, rng = dict(earlier), random.Random(seed)
    moments = [rng.uniform(0.2, longest_s) for _ in range(kills)]
    with tempfile.TemporaryDirectory(prefix="dermlens-batch-") as folder:
        place = Path(folder)
        names = write_names(images, count, place / "names.txt")
        calls: dict[str, Callable[[], Any]] = {
            "speed": lambda: against_predict_many(names, place, rounds, model),
            "memory": lambda: [peak_memory(images, place, number, model) for number in memory_counts],
            "listing": lambda: listing_rate(place),
            "ray": lambda: [ray_rate(names, place, number, model) for number in workers],
            "kills": lambda: killed_and_resumed(names, place / "killed", model, moments, part_rows),
        }
        for part in only:
            found[part] = calls[part]()
            CONSOLE.print(f"{part}: {found[part]}", highlight=False)
    return found


def write_names(folder: Path, count: int, path: Path) -> Path:
    """Write a list of `count` image names, the folder's over and over."""
    from dermlens.batch.sources import is_image_name
    from dermlens.batch.storage import walk

    names = [os.path.abspath(name) for name in walk(str(folder), []) if is_image_name(name)]
    path.write_text("".join(f"{name}\n" for name in itertools.islice(itertools.cycle(names), count)), encoding="utf-8")
    return path


def against_predict_many(names: Path, place: Path, rounds: int, model: str) -> dict[str, Any]:
    """Return images a second and processor time of both, in turn, the start of the model included."""
    from dermlens.batch.job import open_job, run_job
    from dermlens.inference.predictor import Predictor

    paths = names.read_text(encoding="utf-8").splitlines()

    def predict_many(number: int) -> None:
        for _ in Predictor(model).predict_many(paths):
            pass

    def batch(number: int) -> None:
        with open_job([str(names)], place / f"local{number}", model=model) as job:
            run_job(job)

    for _ in Predictor(model).predict_many(paths[:32]):  # loads what is loaded once
        pass
    rates: dict[str, list[float]] = {"predict_many": [], "batch": []}
    processor: dict[str, list[float]] = {"predict_many": [], "batch": []}
    for number in range(rounds):
        for work in (predict_many, batch) if number % 2 else (batch, predict_many):
            start, start_cpu = time.perf_counter(), time.process_time()
            work(number)
            rates[work.__name__].append(len(paths) / (time.perf_counter() - start))
            processor[work.__name__].append((time.process_time() - start_cpu) * 1000 / len(paths))

    def ratio(values: Mapping[str, list[float]]) -> dict[str, float]:
        return spread([b / a for a, b in zip(values["predict_many"], values["batch"], strict=True)])

    return {
        "images": len(paths),
        "rate, batch / predict_many": ratio(rates),
        "processor time, batch / predict_many": ratio(processor),
        "processor ms per image": spread(processor["batch"]),
        "images/s": spread(rates["batch"]),
    }


def peak_memory(images: Path, place: Path, count: int, model: str) -> dict[str, float]:
    """Run the command in a fresh process; return its peak memory and its processor time per image."""
    names, out = write_names(images, count, place / f"{count}.txt"), place / str(count)
    taken = spent([sys.executable, "-m", "dermlens", "batch", str(names), "--out", str(out), "--model", model])
    per_image = taken.processor_s * 1000 / count
    return {
        "images": count,
        "peak_mb": taken.peak_mb,
        "processor_ms": per_image,
        "parts": len(list(out.glob("part-*"))),
    }


def listing_rate(place: Path) -> dict[str, float]:
    """Return how many names of a list are read, and given out in units, in a second of processor time."""
    from dermlens.batch.sources import read_listing

    path = place / "listing.txt"
    path.write_text("".join(f"folder/{index:09d}.jpg\n" for index in range(LISTED)), encoding="utf-8")
    start = time.process_time()
    listing = read_listing([str(path)])
    listed = time.process_time()
    given = sum(len(unit.sources) for unit in listing.units(10_000))
    return {"read": LISTED / (listed - start), "given out": given / (time.process_time() - listed)}


def ray_rate(names: Path, place: Path, workers: int, model: str) -> dict[str, float]:
    """Return images a second from the first finished part on."""
    from dermlens.batch.job import Progress, Settings, open_job, run_job
    from dermlens.cluster.batch import ray_engine

    seen: list[tuple[float, int]] = []
    with open_job([str(names)], place / f"ray{workers}", model=model, settings=Settings(part_rows=100)) as job:
        start = time.perf_counter()

        def report(progress: Progress) -> None:
            seen.append((time.perf_counter(), progress.rows))

        run_job(job, ray_engine(None, workers), report)
    rate = sum(rows for _, rows in seen[1:]) / (seen[-1][0] - seen[0][0])
    return {"workers": workers, "images/s": rate, "start_s": seen[0][0] - start}


def killed_and_resumed(names: Path, out: Path, model: str, moments: Sequence[float], part_rows: int) -> dict[str, Any]:
    """Kill a job after so many seconds each time, run it to its end, and count its rows.

    Raises:
        SystemExit: a row is missing or stands twice.
    """
    command = [sys.executable, "-m", "dermlens", "batch", str(names), "--out", str(out), "--resume"]
    command += ["--part-rows", str(part_rows), "--model", model]
    after = []
    for delay_s in moments:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(delay_s)
        process.kill()
        if process.wait() == 0:
            break
        after.append({"after_s": delay_s, "rows": len(_rows(out)), "unfinished": len(list(out.glob(".*-new.*")))})
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True, cwd=ROOT)
    difference = Counter(_rows(out))
    difference.subtract(names.read_text(encoding="utf-8").splitlines())
    wrong = sum(abs(count) for count in difference.values())
    if wrong:
        raise SystemExit(f"{wrong} rows are missing or stand twice after {len(after)} kills.")
    return {"kills": after, "rows": len(_rows(out)), "wrong": wrong}


def _rows(out: Path) -> list[str]:
    """Return the images of all finished rows, as any reader of the folder would find them."""
    import pyarrow.dataset

    if not list(out.glob("part-*")):
        return []
    return [str(name) for name in pyarrow.dataset.dataset(out).to_table(columns=["image"])["image"].to_pylist()]


def table(found: Mapping[str, Any]) -> str:
    """Return a line for each part."""
    rows: list[list[Any]] = []
    if "speed" in found:
        speed = found["speed"]
        rows += [[f"{key}, {speed['images']:,} images", cell(speed[key], 2)] for key in speed if " / " in key]
        rows.append(["processor ms per image", cell(speed["processor ms per image"], 1)])
    rows += [
        [f"peak memory, {row['images']:,} images", f"{row['peak_mb']:.0f} MB ({row['processor_ms']:.1f} ms per image)"]
        for row in found.get("memory", ())
    ]
    for name, rate in found.get("listing", {}).items():
        rows.append([f"names of a list {name}, per second of processor time", f"{rate:,.0f}"])
    rows += [
        [f"Ray, {row['workers']} workers, images/s", f"{row['images/s']:.0f} (start {row['start_s']:.0f} s)"]
        for row in found.get("ray", ())
    ]
    if "kills" in found:
        killed = found["kills"]
        said = f"{killed['rows']:,} of {killed['rows']:,} rows, none twice"
        rows.append([f"after {len(killed['kills'])} times `kill -9` and `--resume`", said])
    return markdown(["`dermlens batch`", "measured"], rows)
