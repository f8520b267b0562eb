"""`kill -9` at random moments of `dermlens batch`, the rows that were there after each, and the count at the end.

    python benchmarks/batch_kills.py [--images FOLDER] [--count 2000] [--part-rows 50] [--kills 10] [--seed 0]
                                     [--longest-s 8] [--model default]

Prints a table: when the process was killed, finished rows and parts then, and files that do not belong there. Ends with
an error when a row is missing or stands twice.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from batch import EXAMPLES, write_names


def image_names(out: Path) -> list[str]:
    """Return the images of all finished rows, as any reader of the folder would find them."""
    import pyarrow.dataset

    if not list(out.glob("part-*")):
        return []
    return [str(name) for name in pyarrow.dataset.dataset(out).to_table(columns=["image"])["image"].to_pylist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=EXAMPLES)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--part-rows", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest-s", type=float, default=8.0)
    parser.add_argument("--model", default="default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print("| kill -9 after | finished rows | parts | unfinished files |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="dermlens-kills-") as folder:
        names, out = write_names(options.images, options.count, Path(folder, "names.txt")), Path(folder, "out")
        command = [sys.executable, "-m", "dermlens", "batch", str(names), "--out", str(out), "--resume"]
        command += ["--part-rows", str(options.part_rows), "--model", options.model]
        for _ in range(options.kills):
            delay_s = rng.uniform(0.2, options.longest_s)
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(delay_s)
            process.kill()
            if process.wait() == 0:
                break
            parts, unfinished = len(list(out.glob("part-*"))), len(list(out.glob(".*.tmp")))
            print(f"| {delay_s:.1f} s | {len(image_names(out)):,} | {parts} | {unfinished} |", flush=True)
        subprocess.run(command, stderr=subprocess.DEVNULL, check=True)
        difference = Counter(image_names(out))
        difference.subtract(names.read_text().splitlines())
        wrong = sum(abs(count) for count in difference.values())
        parts, unfinished = len(list(out.glob("part-*"))), len(list(out.glob(".*.tmp")))
        print(f"| not killed | {len(image_names(out)):,} of {options.count:,} | {parts} | {unfinished} |")
    if wrong:
        raise SystemExit(f"{wrong} rows are missing or stand twice.")
    print("No row is missing, none stands twice.")


if __name__ == "__main__":
    main()
