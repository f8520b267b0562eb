"""Does the answer depend on the lesion? Paired tests: each image against itself with an artefact, or without lesion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.limits import grave_codes
from dermlens.bundle.probabilities import probabilities
from dermlens.data.images import Pixels
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import sampled_figure, weightings
from dermlens.evaluation.metrics import Floats, Ints
from dermlens.evaluation.overlays import ARTEFACTS, WITHOUT_LESION, Change
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

MOST_IMAGES = 600
AS_IT_IS = "as it is"


def run_controls(
    bundle: Bundle,
    load: Callable[[int], Pixels],
    y_true: Ints,
    lesions: Ints,
    *,
    mix: CaseMix | None = None,
    seed: int,
    console: Console,
    most: int = MOST_IMAGES,
) -> dict[str, Any]:
    """Answer for each image as it is and with every artefact.

    Args:
        load: gives the pixels of image i as the network sees them.
        y_true: (n,) classes; lesions: (n,) lesion numbers.
        mix: the case mix of the answers; the model's own when None.
        most: of more images, so many are drawn at random.

    Returns:
        `{"images", "watched", "artefacts": {name: {"flip_rate", "watched_change", "accuracy_change"}},
        "without_lesion": {name: {"balanced_accuracy", "chance"}}}`, figures with 95 % intervals over lesions.
        `watched` is melanoma, or what is malignant, or the first class.
    """
    rows = drawn_rows(len(y_true), most, seed)
    changes = {AS_IT_IS: same, **ARTEFACTS, **WITHOUT_LESION}
    answers = answer_changes(bundle, load, rows, changes, mix=mix, seed=seed, console=console)
    truth, groups = y_true[rows], np.unique(lesions[rows], return_inverse=True)[1].astype(np.int64)
    weights = weightings(truth, groups, seed=seed)
    watched = ("MEL",) if "MEL" in bundle.codes else grave_codes(bundle.codes) or (bundle.codes[0],)
    columns = [bundle.codes.index(code) for code in watched]
    before, decided = answers[AS_IT_IS]
    n_lesions = int(groups.max()) + 1

    def mean(values: Floats, *, lesions: int | None = None) -> dict[str, Any]:
        return sampled_figure(metrics.mean_loss(values, weights), reason="no images", lesions=lesions)

    def paired(name: str) -> dict[str, Any]:
        probability, decision = answers[name]
        moved = probability[:, columns].sum(axis=1) - before[:, columns].sum(axis=1)
        right = (decision == truth).astype(float) - (decided == truth)
        return {
            "flip_rate": mean((decision != decided).astype(float), lesions=n_lesions),
            "watched_change": mean(moved),
            "watched_change_absolute": mean(np.abs(moved)),
            "accuracy_change": mean(right),
        }

    def balanced(name: str) -> dict[str, Any]:
        counts = metrics.class_counts(truth, answers[name][1], len(bundle.codes), weights)
        return sampled_figure(metrics.balanced_accuracy(counts, present), reason="no images")

    present = np.unique(truth)
    return {
        "images": len(rows),
        "lesions": n_lesions,
        "watched": list(watched),
        "artefacts": {name: paired(name) for name in ARTEFACTS},
        "without_lesion": {
            name: {"balanced_accuracy": balanced(name), "chance": 1 / len(present)}
            for name in (AS_IT_IS, *WITHOUT_LESION)
        },
    }


def same(image: Pixels, _: np.random.Generator) -> Pixels:
    """Return the image as it is."""
    return image


def drawn_rows(n: int, most: int, seed: int) -> Ints:
    """Return all rows of n images, or `most` of them drawn at random, ascending."""
    rows = np.arange(n)
    return rows if n <= most else np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def answer_changes(
    bundle: Bundle,
    load: Callable[[int], Pixels],
    rows: Ints,
    changes: Mapping[str, Change],
    *,
    mix: CaseMix | None = None,
    seed: int,
    console: Console,
) -> dict[str, tuple[Floats, Ints]]:
    """Return (probability, decision) of the images `rows` under every change.

    Each image draws its artefacts from a generator of its own, so two models get the same images.
    """
    runtime = Runtime(bundle.graph_path)
    logits: dict[str, list[np.ndarray]] = {name: [] for name in changes}
    with track("Controls", len(rows), console) as advance:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            images = [load(int(row)) for row in part]
            for name, change in changes.items():
                altered = [
                    change(image, np.random.default_rng([seed, int(row)]))
                    for row, image in zip(part, images, strict=True)
                ]
                logits[name].append(runtime.run(np.stack(altered)).logits)
            advance(len(part))
    result = {}
    for name, parts in logits.items():
        probability = probabilities(
            np.concatenate(parts), bundle.calibration, (mix or bundle.case_mix).of(bundle.codes)
        )
        result[name] = probability, probability.argmax(axis=1)
    return result
