"""What it gains to draw artefacts into the training views: the same small model with and without, in pairs.

    python benchmarks/artefacts_gain.py DATA [--share 0.5] [--images 600] [--out DIR] [--seed 0]

DATA holds `ham10000/` and `isic_reference.csv`. Trains twice on 45 % of the lesions of a part of HAM10000 (its 224 px
images, one a lesion, at most 1,200 of a diagnosis): Lite0, blocks 11 to 16 over cached features of four views, six
epochs, recipe setting `artefacts` 0 and `--share`; split, seed and everything else are the same. Then both models
answer for the same test lesions with the same artefacts, as `dermlens evaluate --controls` does. Intervals: 95 %, from
a bootstrap over lesions within their diagnosis, both models on the same lesions. The artefacts of the test are drawn by
the same code as those of the training, though more uniformly: real hair and real ink may gain less.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from left_out import small_ham10000
from rich.console import Console

from dermlens.bundle.bundle import Bundle, load_bundle
from dermlens.data.images import Pixels, load_image
from dermlens.data.records import Dataset, Record
from dermlens.data.tables import read_table
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import lesion_index, resample_weights, sampled_figure
from dermlens.evaluation.controls import AS_IT_IS, answer_changes, drawn_rows, same
from dermlens.evaluation.overlays import ARTEFACTS
from dermlens.text import figure
from dermlens.training.recipe import Recipe
from dermlens.training.run import About, train

RECIPE = Recipe(
    fine_tune="top",
    cut_block=10,
    views=4,
    epochs=6,
    head_epochs=10,
    patience=0,
    train=0.45,
    select=0.1,
    calibrate=0.1,
    test=0.35,
)
TRAINED = ("ink marks", "ruler", "dark corners", "hair")
RESAMPLES = 1000


def model(dataset: Dataset, share: float, out: Path, seed: int, console: Console) -> Bundle:
    """Train with that share of artefacts, or read the model that stands in `out`."""
    recipe = replace(RECIPE, artefacts=share, seed=seed)
    about = About(name=f"artefacts_{share:g}", modality="dermoscopy")
    return load_bundle(train(dataset, out / f"artefacts_{share:g}", recipe, about, console=console))


def test_records(dataset: Dataset, bundle: Bundle) -> list[Record]:
    rows = read_table(bundle.folder.parent / "split.csv").rows
    tested = {row["image"] for row in rows if row["role"] == "test"}
    return [r for r in dataset.records if r.image in tested]


def compare(without: Bundle, bundle: Bundle, records: list[Record], seed: int, console: Console) -> dict[str, Any]:
    """Flip rates and accuracies of both models under each artefact, and their differences in pairs."""
    truth = np.array([bundle.codes.index(r.diagnosis) for r in records])
    lesions = lesion_index([r.lesion_id for r in records], len(records))

    def load(row: int) -> Pixels:
        return load_image(records[row].path, bundle.input_spec, frame_aspect=records[row].frame_aspect)

    changes = {AS_IT_IS: same, **ARTEFACTS}
    rows = np.arange(len(records))
    both = [
        {name: decision for name, (_, decision) in found.items()}
        for found in (answer_changes(b, load, rows, changes, seed=seed, console=console) for b in (without, bundle))
    ]
    weights = np.concatenate(
        [np.ones((1, len(truth))), *resample_weights(truth, lesions, resamples=RESAMPLES, seed=seed)]
    )
    n_lesions = int(lesions.max()) + 1

    def mean(values: np.ndarray, share: bool = False) -> dict[str, Any]:
        found = metrics.mean_loss(values.astype(np.float64), weights)
        return sampled_figure(found, reason="no images", lesions=n_lesions if share else None)

    result: dict[str, Any] = {"images": len(records), "lesions": n_lesions, "artefacts": {}}
    for name in ARTEFACTS:
        flips = [(decisions[name] != decisions[AS_IT_IS]).astype(float) for decisions in both]
        right = [(decisions[name] == truth).astype(float) for decisions in both]
        result["artefacts"][name] = {
            "flips_without": mean(flips[0], True),
            "flips_with": mean(flips[1], True),
            "flips_difference": mean(flips[1] - flips[0]),
            "accuracy_without": mean(right[0], True),
            "accuracy_with": mean(right[1], True),
            "accuracy_difference": mean(right[1] - right[0]),
        }
    clean = [(decisions[AS_IT_IS] == truth).astype(float) for decisions in both]
    recalls = [
        metrics.sensitivity(metrics.class_counts(truth, decisions[AS_IT_IS], len(bundle.codes), weights)).mean(axis=1)
        for decisions in both
    ]
    result[AS_IT_IS] = {
        "accuracy_without": mean(clean[0], True),
        "accuracy_with": mean(clean[1], True),
        "accuracy_difference": mean(clean[1] - clean[0]),
        "balanced_accuracy_without": sampled_figure(recalls[0], reason="no images"),
        "balanced_accuracy_with": sampled_figure(recalls[1], reason="no images"),
        "balanced_accuracy_difference": sampled_figure(recalls[1] - recalls[0], reason="no images"),
    }
    return result


def markdown(found: dict[str, Any]) -> str:
    header = (
        "artefact",
        "in the training",
        "flips without",
        "flips with",
        "difference",
        "accuracy under it, difference",
    )
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, row in found["artefacts"].items():
        keys = ("flips_without", "flips_with", "flips_difference", "accuracy_difference")
        lines.append(f"| {name} | {'yes' if name in TRAINED else 'no'} | {' | '.join(figure(row[k]) for k in keys)} |")
    plain = found[AS_IT_IS]
    for what in ("accuracy", "balanced_accuracy"):
        cells = " and ".join(figure(plain[f"{what}_{side}"]) for side in ("without", "with"))
        lines.append(f"\n{what} as it is: {cells}, difference {figure(plain[f'{what}_difference'])}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/artefacts_gain"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(stderr=True, width=120)
    dataset = small_ham10000(options.data, options.seed)
    without, bundle = (model(dataset, share, options.out, options.seed, console) for share in (0.0, options.share))
    records = test_records(dataset, without)
    records = [records[i] for i in drawn_rows(len(records), options.images, options.seed)]
    found = {"share": options.share, "seed": options.seed, **compare(without, bundle, records, options.seed, console)}
    (options.out / "artefacts_gain.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
