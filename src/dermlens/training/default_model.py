"""The embedded model: HAM10000 and ISIC-9, repaired through the reference, eight classes of dermoscopy.

    python -m dermlens.training.default_model --data DATA --out runs/default [--install]

DATA holds `ham10000/`, `isic9/` and `isic_reference.csv`. `--install` copies the graph, its JSON and its card into
`src/dermlens/models/default`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score

from dermlens.audit.findings import hash_records
from dermlens.bundle.bundle import MODELS_DIR, copy_bundle
from dermlens.data.combine import combine, drop_contradictions_and_duplicates
from dermlens.data.manifest import isic_ids_of_lesions, read_dataset
from dermlens.data.records import Dataset, Record
from dermlens.diagnoses import ISIC2019
from dermlens.errors import DermlensError
from dermlens.reporting.progress import track
from dermlens.training.recipe import Recipe, make_recipe, read_recipe
from dermlens.training.run import About, train

FRAME_ASPECT = 4 / 3  # ISIC-9 files are the full 4:3 frame squashed to a square
PREFERENCE = ("images_224", "isic9", "images_200x150")  # which copy of a picture is kept: the sharpest

RECIPE = Recipe(fine_tune="full", epochs=12, artefacts=0.25, patience=0)

ABOUT = About(
    name="default",
    version="1.3.0",
    scope=(
        "Reads dermoscopic images (taken through a dermatoscope) of eight skin lesions: actinic keratosis, basal cell "
        "carcinoma, benign keratosis, dermatofibroma, melanoma, nevus, squamous cell carcinoma and vascular lesion. "
        "It does not read ordinary photographs of skin, rashes or other conditions."
    ),
    modality="dermoscopy",
    weights_licence="CC BY-NC 4.0, since the model was trained on CC BY-NC images; free for non-commercial use",
    data_sources=(
        "HAM10000, CC BY-NC 4.0 (Tschandl et al. 2018, doi 10.1038/sdata.2018.161): one 224 px image for most lesions, "
        "further views at 200 x 150 px",
        "ISIC-9, the nine-class set of the ISIC archive (CC0 or CC BY-NC by image), 180 px, repaired through the "
        "official ISIC 2019 diagnoses",
    ),
    not_tested_on=(
        "clinical (non-dermoscopic) photographs, which it cannot read",
        "diagnoses other than its eight classes",
        "patients with dark skin: the sources hold almost none and do not record skin tone",
        "other clinics, dermatoscopes and countries than those of HAM10000 and the ISIC archive",
        "children, mucosa, nails and scalp as groups of their own",
    ),
)


def default_dataset(data: Path, console: Console) -> Dataset:
    """Return the repaired records of both sources, the example images held back for the test role."""
    reference = data / "isic_reference.csv"
    ham = read_dataset(data / "ham10000", reference=reference, task="isic2019")
    isic9 = read_dataset(data / "isic9", reference=reference, task="isic2019", frame_aspect=FRAME_ASPECT)
    isic9 = replace(isic9, records=tuple(replace(r, split=None, source="isic9") for r in isic9.records))
    joined = combine(ham, isic9)
    with track("Looking for duplicates", len(joined.records), console) as advance:
        hashes = hash_records(joined.records, progress=advance)
    records, notes = drop_contradictions_and_duplicates(joined.records, hashes, prefer=PREFERENCE)
    held = _reserved()
    records = [replace(r, split="test") if _is_held(r, held) else r for r in records]
    return replace(joined, records=tuple(records), notes=(*joined.notes, *notes))


def _reserved() -> dict[str, list[str]]:
    text = (Path(__file__).parent / "reserved.json").read_text(encoding="utf-8")
    reserved: dict[str, list[str]] = json.loads(text)
    return reserved


def _is_held(record: Record, held: dict[str, list[str]]) -> bool:
    return record.isic_id in held["isic_ids"] or record.lesion_id in held["lesion_ids"]


def source_alone(records: Sequence[Record]) -> dict[str, Any]:
    """Say how well the source of an image alone tells its class: the best guess for each source, scored."""
    sources = np.array([str(r.source) for r in records])
    codes = np.array([r.diagnosis for r in records])
    rows = {}
    for code in ISIC2019:
        of_class = sources[codes == code]
        rows[code] = {s: float(np.mean(of_class == s)) for s in sorted(set(sources))}
    guess = {s: max(rows, key=lambda code: rows[code][s]) for s in sorted(set(sources))}
    value = float(balanced_accuracy_score(codes, [guess[s] for s in sources]))
    return {
        "balanced_accuracy": value,
        "chance": 1 / len(ISIC2019),
        "share_of_class_by_source": rows,
        "sentence": (
            f"The source of an image alone ({', '.join(sorted(set(sources)))}), with the best guess for each, reaches "
            f"a balanced accuracy of {value:.3f}, against {1 / len(ISIC2019):.3f} by chance: this much could be "
            "learned from framing and compression instead of skin. All sources are brought to one framing, and "
            "compression is varied in training, to make it less."
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument("--recipe", type=Path, help="TOML recipe over the default one")
    parser.add_argument("--install", action="store_true", help="copy the bundle into src/dermlens/models/default")
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args(argv)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140)
    try:
        recipe = make_recipe(read_recipe(options.recipe), base=RECIPE) if options.recipe else RECIPE
        dataset = default_dataset(options.data, console)
        about = replace(ABOUT, extra={"source_alone": source_alone(dataset.records)})
        bundle = train(
            dataset,
            options.out,
            recipe,
            about,
            overwrite=options.overwrite,
            console=console,
            isic_ids_of_lesion=isic_ids_of_lesions(options.data / "isic_reference.csv"),
        )
    except DermlensError as error:
        console.print(f"Error: {error}", style="red", highlight=False)
        return 2
    if not options.install:
        console.print("To embed it in the package, run the same command with --install.", highlight=False)
    if options.install:
        copy_bundle(bundle, MODELS_DIR / "default")
        console.print(f"Installed in {MODELS_DIR / 'default'}.", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
