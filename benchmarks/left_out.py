"""A network that was trained without one diagnosis: does it notice lesions of that diagnosis?

    DERMLENS_DATA=/path/to/data python benchmarks/novelty.py --left-out VASC [--left-out DF] [--out DIR] [--seed 0]

Trains on the 224 px images of HAM10000 (one a lesion, labels by the ISIC 2019 reference, 1,200 of the 4,323 nevi)
without the images of that diagnosis: no role of the split holds one, so neither the network nor any threshold has met
it. Small on purpose: Lite0, blocks 11 to 16 over cached features of two views, four epochs. Known are the test lesions
of the other diagnoses, strange are all lesions of the one left out. Intervals: 95 %, from a bootstrap over lesions
within their diagnosis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dermlens import Predictor
from dermlens.data.manifest import read_dataset
from dermlens.data.records import Dataset, Record
from dermlens.data.tables import read_table
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import lesion_index, resample_weights, sampled_figure
from dermlens.evaluation.fit_trust import sample_per_class
from dermlens.inference.prediction import Prediction
from dermlens.text import figure
from dermlens.training.recipe import Recipe
from dermlens.training.run import About, train

RECIPE = Recipe(fine_tune="top", cut_block=10, views=2, epochs=4, head_epochs=10, patience=0)
RESAMPLES = 1000
MOST = 1200  # images of one diagnosis


def small_ham10000(data: Path, seed: int) -> Dataset:
    """HAM10000, the 224 px images alone, one a lesion, and at most `MOST` of a diagnosis."""
    dataset = read_dataset(data / "ham10000", reference=data / "isic_reference.csv", task="isic2019")
    sharp = [r for r in dataset.records if "images_224" in r.path.parts]
    codes = np.unique([r.diagnosis for r in sharp], return_inverse=True)[1].astype(np.int64)
    return replace(dataset, records=tuple(sharp[i] for i in sample_per_class(codes, seed=seed, most=MOST)))


def without(code: str, data: Path, out: Path, seed: int, console: Console) -> dict[str, Any]:
    """Train without `code` in `out`, or read the model that stands there, and say whether it notices `code`."""
    dataset = small_ham10000(data, seed)
    known = replace(dataset, records=tuple(r for r in dataset.records if r.diagnosis != code))
    about = About(name=f"without_{code}", modality="dermoscopy")
    train(known, out, replace(RECIPE, seed=seed), about, console=console)
    tested = {row["image"] for row in read_table(out / "split.csv").rows if row["role"] == "test"}
    records = [r for r in dataset.records if r.image in tested or r.diagnosis == code]
    predictor = Predictor(out)
    answers = list(predictor.predict_many([r.path for r in records]))
    return {**measured(code, records, answers, seed), "balanced_accuracy_of_the_rest": _score(predictor)}


def measured(code: str, records: Sequence[Record], answers: Sequence[Prediction], seed: int) -> dict[str, Any]:
    """AUROC of novelty and of doubt, and what becomes of lesions of `code` beside those that it knows."""
    classes = sorted({r.diagnosis for r in records})
    y_true = np.array([classes.index(r.diagnosis) for r in records])
    strange = y_true == classes.index(code)
    lesions = lesion_index([r.lesion_id for r in records], len(records))
    weights = np.concatenate(
        [np.ones((1, len(records))), *resample_weights(y_true, lesions, resamples=RESAMPLES, seed=seed)]
    )
    score = np.array([a.novelty["score"] if a.novelty else np.nan for a in answers])
    doubt = np.array([1 - max(a.probabilities.values()) for a in answers])
    passed = np.array([a.novelty is not None and a.novelty["score"] <= a.novelty["threshold"] for a in answers])
    status = np.array([a.status for a in answers])

    def share(what: np.ndarray, among: np.ndarray) -> dict[str, Any]:
        return sampled_figure(
            metrics.mean_loss(what.astype(np.float64), weights * among),
            reason="no images",
            lesions=len(np.unique(lesions[among])),
        )

    def auroc(values: np.ndarray) -> dict[str, Any]:
        return sampled_figure(metrics.area(metrics.roc(strange, values, weights)), reason="no images")

    return {
        "left_out": code,
        "lesions": len(np.unique(lesions[strange])),
        "known_lesions": len(np.unique(lesions[~strange])),
        "auroc": auroc(score),
        "auroc_of_doubt": auroc(doubt),
        "accepted": share(passed, strange),
        "known_accepted": share(passed, ~strange),
        "ok": share(status == "ok", strange),
        "known_ok": share(status == "ok", ~strange),
    }


def _score(predictor: Predictor) -> dict[str, Any]:
    found: dict[str, Any] = predictor.bundle.card["metrics"]["balanced_accuracy"]
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    header = (
        *("left out", "lesions", "known test lesions", "AUROC of novelty", "accepted by novelty", "known accepted"),
        *("AUROC of 1 - largest probability", "answered `ok`", "known answered `ok`", "balanced accuracy on the known"),
    )
    keys = ("auroc", "accepted", "known_accepted", "auroc_of_doubt", "ok", "known_ok", "balanced_accuracy_of_the_rest")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [row["left_out"], str(row["lesions"]), str(row["known_lesions"]), *(figure(row[key]) for key in keys)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
