"""Size and agreement of every export of a trained model: the table in docs/export.md.

    python benchmarks/exports.py RUN [RUN ...] [--images FOLDER]

Each file is loaded by its own runtime in a process of its own and compared with Keras, as `dermlens export` does it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from dermlens.export.export import export
from dermlens.export.formats import FORMATS

NAMES = {"openvino": "m.xml", "onnx": "m.onnx", "litert": "m.tflite", "saved-model": "m"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--images", action="append", default=[], help="images to compare on; the examples by default")
    options = parser.parse_args()
    print("| network | format | MB | run by | largest difference | in a probability | same diagnosis |")
    print("|---|---|---|---|---|---|---|")
    for run in options.runs:
        card = json.loads(Path(run, "bundle", "bundle.json").read_text(encoding="utf-8"))
        network = f"{card['backbone']['title']}, {card['input']['size_px']} px, {len(card['classes'])} classes"
        for name in FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                made = export(run, name, Path(folder, NAMES[name]), images=options.images)
            agreement = made.agreement
            print(
                f"| {network} | `{name}` | {made.bytes / 1e6:.1f} | {made.runtime} | {agreement.worst:.1e} "
                f"| {agreement.probability:.1e} | {agreement.same_diagnosis} of {agreement.images} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
