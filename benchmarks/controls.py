"""What artefacts and hidden lesions do to the embedded model, on its test lesions.

    DERMLENS_DATA=/path/to/data python benchmarks/controls.py [--images 600] [--out DIR] [--seed 0]

The same as `dermlens evaluate --controls`, on the test role of both sources.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from embedded import embedded_roles
from rich.console import Console

from dermlens.bundle.bundle import MODELS_DIR, load_bundle
from dermlens.data.images import Pixels, load_image
from dermlens.evaluation.controls import MOST_IMAGES, run_controls
from dermlens.text import figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=MOST_IMAGES)
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    bundle = load_bundle(MODELS_DIR / "default")
    test = embedded_roles(bundle, console)["test"]

    def load(row: int) -> Pixels:
        record = test.records[row]
        return load_image(record.path, bundle.input_spec, frame_aspect=record.frame_aspect)

    found = run_controls(
        bundle, load, test.y_true, test.lesions, seed=options.seed, console=console, most=options.images
    )
    found = {"model": {"name": bundle.name, "version": bundle.version, "sha256": bundle.sha256}, **found}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "controls.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, row in found["artefacts"].items():
        print(f"{name:24} changed {figure(row['flip_rate'])}  P(melanoma) {figure(row['watched_change'])}")
    for name, row in found["without_lesion"].items():
        print(f"{name:24} balanced accuracy {figure(row['balanced_accuracy'])}, chance {row['chance']:.3f}")


if __name__ == "__main__":
    main()
