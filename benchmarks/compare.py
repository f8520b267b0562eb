"""Measure a quick subset of the speed suite again and compare its ratios with the committed ones.

    python benchmarks/compare.py [--fall 0.25] [--only network one_image many_images quick]

Fails when a ratio has fallen by more than `--fall`, a share, against `benchmarks/results/speed`, or lies below its
floor. Only ratios taken in one run are compared, never times; but a ratio, too, depends on the processor, so compare on
one like the committed one's. `make test` runs `quick` alone, which takes half a minute: its floors hold on any
processor, and no ratio may have fallen by more than 0.6.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QUICK = {
    "network": ["--backbones", "lite0", "--repeats", "10"],
    "one_image": ["--repeats", "7"],
    "many_images": ["--count", "64", "--rounds", "3"],
    "quick": [],
}


def fallen(before: Mapping[str, Any], now: Mapping[str, Any], fall: float) -> list[str]:
    """Return a sentence for each ratio of `now` whose median lies more than the share `fall` below that of `before`."""
    found = []
    for name, ratio in now.items():
        if name in before and ratio["median"] < before[name]["median"] * (1 - fall):
            found.append(f"{name}: {ratio['median']:.2f}, was {before[name]['median']:.2f}")
    return found


def below_floor(now: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each ratio that lies below the floor of its own."""
    return [
        f"{name}: {ratio['median']:.2f}, never below {ratio['floor']}"
        for name, ratio in now.items()
        if ratio["median"] < ratio.get("floor", 0)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fall", type=float, default=0.25)
    parser.add_argument("--only", nargs="+", choices=list(QUICK), default=list(QUICK))
    options = parser.parse_args()
    problems, compared = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            environment = {**os.environ, "DERMLENS_BENCH_OUT": folder}
            command = [sys.executable, str(HERE / f"{name}.py"), *QUICK[name]]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            now = json.loads((Path(folder) / f"{name}.json").read_text())["ratios"]
            before = json.loads((HERE / "results" / "speed" / f"{name}.json").read_text())["ratios"]
            for key, ratio in now.items():
                was = f"{before[key]['median']:.2f}" if key in before else "not measured"
                print(f"{key}: {ratio['median']:.2f} (committed: {was})")
            compared += len(set(now) & set(before))
            problems += [*fallen(before, now, options.fall), *below_floor(now)]
    print(f"{compared} ratios compared, {len(problems)} below their floor or fallen by more than {options.fall:.0%}.")
    if problems or not compared:
        raise SystemExit("\n".join(["Slower than it was:", *problems]))


if __name__ == "__main__":
    main()
