"""Where bfloat16 loses its accuracy: the embedded model with some layers kept in float32, against float32 throughout.

    DERMLENS_DATA=/path/to/data python benchmarks/precision_layers.py [--count 800] [--role calibrate]

The first images of the role; the same calibration for all. Processor time is that of passes of four images on one core,
each variant in turn, 10th percentile.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from embedded import embedded_roles
from measure import save
from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.evaluation.precision_layers import heavy_layers, keeping_float32
from dermlens.inference.runtime import MOST_IN_A_PASS, Runtime
from dermlens.training.views import plain_view


def variants(layers: list[str]) -> dict[str, set[int]]:
    n, depthwise = len(layers), {i for i, kind in enumerate(layers) if kind == "GroupConvolution"}
    return {
        "none": set(),
        "the first": {0},
        "the last two": {n - 2, n - 1},
        "the first 5 and the last two": {*range(5), n - 2, n - 1},
        "the first third": set(range(round(n / 3))),
        "the last third": set(range(n - round(n / 3), n)),
        "the first two thirds": set(range(round(2 * n / 3))),
        "the depthwise ones": depthwise,
        "all": set(range(n)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--role", default="calibrate", choices=["calibrate", "test"])
    options = parser.parse_args()
    bundle = load_bundle(MODELS_DIR / "default", float32=True)
    records = embedded_roles(bundle, Console(stderr=True, width=120))[options.role].records[: options.count]
    records = records[: len(records) // MOST_IN_A_PASS * MOST_IN_A_PASS]
    runtimes = {"float32": Runtime(bundle.graph_path, threads=1)}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(bundle.folder / "graph.bin", folder)
        place = Path(folder, "graph.xml")
        for name, kept in variants(heavy_layers(bundle.graph_path)).items():
            place.write_text(keeping_float32(bundle.graph_path, kept), encoding="utf-8")
            runtimes[name] = Runtime(place, precision="bf16", threads=1)
            runtimes[name].run_beside(np.zeros((MOST_IN_A_PASS, *[bundle.input_spec.size_px] * 2, 3), np.uint8))
        logits: dict[str, list[Any]] = {name: [] for name in runtimes}
        took: dict[str, list[float]] = {name: [] for name in runtimes}
        for start in range(0, len(records), MOST_IN_A_PASS):
            part = records[start : start + MOST_IN_A_PASS]
            pixels = np.stack([plain_view(record, bundle.input_spec) for record in part])
            for name, runtime in runtimes.items():
                before = time.process_time()
                logits[name].append(runtime.run_beside(pixels).logits)
                took[name].append(time.process_time() - before)
    shares = {name: probabilities(np.concatenate(rows), bundle.calibration) for name, rows in logits.items()}
    named = {name: decide(share, bundle.calibration, bundle.decision_rule) for name, share in shares.items()}
    found = {}
    for name in list(runtimes)[1:]:
        change = np.abs(shares[name] - shares["float32"]).max(axis=1)
        found[f"in float32: {name}"] = {
            "agreement": float((named[name] == named["float32"]).mean()),
            "change of probability, 99th percentile": float(np.percentile(change, 99)),
            "processor time of float32's": float(np.percentile(took[name], 10) / np.percentile(took["float32"], 10)),
        }
    save("precision_layers", {}, {"images": len(records), "role": options.role, **found})


if __name__ == "__main__":
    main()
