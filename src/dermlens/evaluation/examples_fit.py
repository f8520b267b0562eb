"""Training images -> the index of training lesions that `predict --neighbours` names; one image of each lesion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.data.records import Record
from dermlens.evaluation.novelty_fit import principal_directions, sample_per_class
from dermlens.evaluation.trust_fit import Labelled, look
from dermlens.evaluation.weighted import Ints
from dermlens.inference.bundle import Bundle
from dermlens.inference.nearest import TEXTS, TrainingExamples, place_of
from dermlens.inference.novelty import normalised
from dermlens.inference.runtime import Runtime

DIRECTIONS = 64
MOST = 7000  # lesions: about 1 MB


def fit_examples(bundle: Bundle, train: Labelled, *, seed: int, console: Console) -> TrainingExamples | None:
    """Return the index of the training lesions, None where no image can be read.

    Args:
        train: all images of the role; the first of each lesion is taken, and where there are more than 7,000 lesions
            the common classes are thinned out.
    """
    rows = first_of_lesion(train.lesions)
    chosen = rows[sample_per_class(train.y_true[rows], seed=seed, most=most_per_class(train.y_true[rows], MOST))]
    part = Labelled([train.records[i] for i in chosen], train.y_true[chosen], train.lesions[chosen])
    runtime = Runtime(bundle.graph_path, precision=bundle.precision)
    seen = look(bundle, runtime, part, console, "Training examples")
    if not len(seen.y_true):
        return None
    record_of = dict(zip(part.lesions.tolist(), part.records, strict=True))
    return index_of(seen.embedding, seen.y_true, [record_of[lesion] for lesion in seen.lesions.tolist()], bundle.codes)


def index_of(
    embedding: npt.NDArray[np.floating], y_true: Ints, records: list[Record], codes: tuple[str, ...]
) -> TrainingExamples:
    """Return the index of n images from their embeddings, (n, d); of an image's path it keeps the file's name alone."""
    unit = normalised(embedding)
    mean = unit.mean(axis=0)
    components = principal_directions(unit - mean, min(DIRECTIONS, unit.shape[1]))
    # as they will be read, so that a picture of the training is at similarity 1 to itself
    mean, components = mean.astype(np.float32), components.astype(np.float16).astype(np.float32)
    places = place_of(embedding, mean, components).astype(np.float16)
    told = [(r.isic_id or Path(r.image).name, r.lesion_id or "", r.source or "", r.licence or "") for r in records]
    texts = dict(zip(TEXTS, zip(*told, strict=True), strict=True))
    return TrainingExamples(codes, mean, components, places, y_true, texts)


def first_of_lesion(lesions: Ints) -> Ints:
    """Return the ascending rows of the first image of each lesion."""
    rows: Ints = np.sort(np.unique(lesions, return_index=True)[1])
    return rows


def most_per_class(y_true: Ints, total: int) -> int:
    """Return how many of each class may be kept so that no more than `total` are, small classes whole."""
    counts = np.sort(np.bincount(y_true, minlength=1))
    left = total
    for place, count in enumerate(counts.tolist()):
        share = left // (len(counts) - place)
        if count > share:
            return share
        left -= count
    return total
