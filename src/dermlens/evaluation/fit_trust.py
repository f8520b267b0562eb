"""A calibrated model and its images by role -> what it needs to know its own limits.

Prediction sets, operating points, the novelty score, limits of image quality, and the index of training lesions that
`predict --neighbours` names. Fitted on the calibrate role (the novelty score also on training images), measured on the
test role, all on the outputs of the runtime that will serve. Nothing is ever fitted on the test role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.bundle.decision import Calibration, DecisionRule, decide, probabilities
from dermlens.bundle.nearest import TEXTS, TrainingExamples, place_of
from dermlens.bundle.novelty import Novelty, normalised
from dermlens.bundle.quality import DEFAULT_LIMITS, Quality, QualityLimits, measure
from dermlens.bundle.trust import Trust, TrustFacts
from dermlens.data.images import InputSpec, Pixels, load_image
from dermlens.data.records import Record
from dermlens.errors import ImageError
from dermlens.evaluation.conformal import fit_sets, measure_sets
from dermlens.evaluation.metrics import Bools, Floats, Ints
from dermlens.evaluation.thresholds import REFERRAL, fit_points, measure_point, not_measured
from dermlens.inference.predictor import DECODE_THREADS
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

LOW_CONFIDENCE_SHARE = 0.2  # the share of calibration answers with low confidence
SURE = 0.5  # a diagnosis as probable as all others together never has low confidence
MIN_LESIONS = 20

ACCEPTED_SHARE = 0.95  # of the calibration lesions, by the novelty threshold
DIRECTIONS = 64
PER_CLASS = 200  # images used of each class: with 600 the score is no better, and no class outweighs others
MIN_IMAGES = 40
BEYOND = 0.005  # share of known images that may be beyond each limit of quality

MOST_EXAMPLES = 7000  # lesions: about 1 MB


class Calibrated(Protocol):
    """What an answer needs beside the graph: a bundle has it, and a model whose bundle is not written yet."""

    @property
    def codes(self) -> tuple[str, ...]: ...
    @property
    def input_spec(self) -> InputSpec: ...
    @property
    def calibration(self) -> Calibration: ...
    @property
    def decision_rule(self) -> DecisionRule: ...


@dataclass(frozen=True)
class Labelled:
    """Images of one role with class index and lesion number, as the data set gives them."""

    records: Sequence[Record]
    y_true: Ints
    lesions: Ints

    def pick(self, rows: Ints) -> Labelled:
        """Return some of the images."""
        return Labelled([self.records[row] for row in rows], self.y_true[rows], self.lesions[rows])


@dataclass(frozen=True)
class Sample:
    """The readable images of one role: classes (n,), lesion numbers (n,), and the model's outputs for them."""

    y_true: Ints
    lesions: Ints
    embedding: npt.NDArray[np.float32]
    probability: Floats
    decision: Ints
    qualities: tuple[Quality, ...]
    logits: npt.NDArray[np.float32]


def fit_trust(
    model: Calibrated, runtime: Runtime, roles: Mapping[str, Labelled], *, seed: int, console: Console
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Fit prediction sets, operating points, novelty score and quality limits.

    Args:
        runtime: the model's graph.
        roles: of "train", "calibrate" and "test"; the first may be a part, the last may be missing.

    Returns:
        The `trust` object of bundle.json and the arrays of trust.npz.
    """
    known = roles["train"].pick(sample_per_class(roles["train"].y_true, seed=seed))
    train = run_model(model, runtime, known, console, "Novelty, train")
    fitted_on = run_model(model, runtime, roles["calibrate"], console, "Novelty, calibrate")
    lesions = len(np.unique(fitted_on.lesions))
    labelled = fitted_on.probability, fitted_on.y_true, fitted_on.lesions
    sets = None
    if lesions >= MIN_LESIONS:
        fitted, basis = fit_sets(*labelled, model.calibration.prior)
        sets = fitted.as_dict() | {"basis": dict(zip(model.codes, basis, strict=True))}
    novelty = fit_novelty(train.embedding, train.y_true, fitted_on.embedding, fitted_on.lesions)
    points = fit_points(*labelled, model.codes)
    facts: dict[str, Any] = {
        "fitted_on": {
            "role": "calibrate",
            "images": len(fitted_on.y_true),
            "lesions": lesions,
            "training_images": len(train.y_true),
        },
        "prediction_sets": sets,
        "min_confidence": _min_confidence(fitted_on) if lesions >= MIN_LESIONS else 0.0,
        "operating_points": points,
        "referral": REFERRAL if any(point["name"] == REFERRAL for point in points) else None,
        "novelty": None if novelty is None else novelty.as_dict(),
        "quality": fit_quality(fitted_on.qualities).as_dict(),
    }
    role, sample = "calibrate", fitted_on
    if "test" in roles and len(roles["test"].records):
        role, sample = "test", run_model(model, runtime, roles["test"], console, "Novelty, test")
    for point in points:
        if role == "test":
            point |= measure_point(point, sample.probability, sample.y_true, sample.lesions, model.codes, seed=seed)
        else:  # what a threshold reaches on the lesions that it was chosen on is no promise for others
            point |= not_measured("no test lesions")
    arrays = {} if novelty is None else novelty.arrays()
    typed = msgspec.convert({**facts, "measured": None}, TrustFacts)
    trust = Trust.read(typed, "", arrays)  # the modality changes only the words of a reason
    facts["measured"] = {"role": role, **_measure(model, sample, trust)} if len(sample.y_true) else None
    return facts, arrays


def run_model(model: Calibrated, runtime: Runtime, images: Labelled, console: Console, what: str) -> Sample:
    """Run the model over images; one that cannot be read is left out."""
    rows: list[int] = []
    embeddings, logits, qualities = [], [], []

    def load(record: Record) -> Pixels | None:
        try:
            return load_image(record.path, model.input_spec, frame_aspect=record.frame_aspect)
        except ImageError:
            return None

    with ThreadPoolExecutor(DECODE_THREADS) as pool, track(what, len(images.records), console) as advance:
        for start in range(0, len(images.records), BATCH):
            loaded = list(enumerate(pool.map(load, images.records[start : start + BATCH]), start))
            rows += [row for row, pixels in loaded if pixels is not None]
            batch = [pixels for _, pixels in loaded if pixels is not None]
            if batch:
                outputs = runtime.run(np.stack(batch))
                embeddings.append(outputs.embedding)
                logits.append(outputs.logits)
                qualities += [measure(pixels) for pixels in batch]
            advance(len(loaded))
    scores = np.concatenate([np.zeros((0, len(model.codes)), np.float32), *logits])
    probability = probabilities(scores, model.calibration)
    chosen = np.array(rows, dtype=np.int64)
    return Sample(
        images.y_true[chosen],
        images.lesions[chosen],
        np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
        probability,
        decide(probability, model.calibration, model.decision_rule),
        tuple(qualities),
        scores,
    )


def _min_confidence(sample: Sample) -> float:
    """Return the largest probability of the diagnosis in the least certain fifth of the lesions; 1/2 at most.

    Each lesion counts once: an image of a lesion with m images weighs 1 / m.
    """
    chosen = sample.probability[np.arange(len(sample.decision)), sample.decision]
    return min(SURE, lesion_quantile(chosen, sample.lesions, LOW_CONFIDENCE_SHARE))


def statuses_of(trust: Trust, model: Calibrated, sample: Sample) -> tuple[npt.NDArray[np.str_], Bools | None]:
    """Return the status of each answer, (n,), and which classes its set contains, (n, classes) or None."""
    scores = None if trust.novelty is None else trust.novelty.score(sample.embedding)
    inside = None
    if trust.sets is not None:
        inside = trust.sets.apply(sample.probability, model.calibration.prior, sample.decision)
    statuses = []
    for row, quality in enumerate(sample.qualities):
        score = None if scores is None else float(scores[row])
        size = None if inside is None else int(inside[row].sum())
        statuses.append(trust.judge(quality, score, size, float(sample.probability[row, sample.decision[row]]))[0])
    return np.array(statuses), inside


def _measure(model: Calibrated, sample: Sample, trust: Trust) -> dict[str, Any]:
    status, inside = statuses_of(trust, model, sample)
    right = sample.decision == sample.y_true
    shares = {
        name: {
            "share": float((status == name).mean()),
            "accuracy": float(right[status == name].mean()) if (status == name).any() else None,
        }
        for name in ("ok", "uncertain", "rejected")
    }
    return {
        "images": len(right),
        "lesions": len(np.unique(sample.lesions)),
        "accuracy": float(right.mean()),
        "status": shares,
        "prediction_sets": None if inside is None else measure_sets(inside, sample.y_true, sample.lesions, model.codes),
    }


def sample_per_class(y_true: Ints, *, seed: int, most: int = PER_CLASS) -> Ints:
    """Return ascending rows, at most `most` of each class."""
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(y_true == c) for c in np.unique(y_true)]
    return np.sort(np.concatenate([r if len(r) <= most else generator.choice(r, most, replace=False) for r in rows]))


def fit_novelty(
    embedding: npt.NDArray[np.floating],
    y_true: Ints,
    calibrate: npt.NDArray[np.floating],
    lesions: Ints,
    *,
    share: float = ACCEPTED_SHARE,
    directions: int = DIRECTIONS,
) -> Novelty | None:
    """Fit the score on training images and its threshold on lesions that the network has not learned from.

    Args:
        embedding: (n, d) of training images, y_true: (n,) their classes.
        calibrate: (m, d) of other images, lesions: (m,) their lesion numbers.
        share: of these lesions, the share at or below the threshold.

    Returns:
        None where there are fewer than 40 training images or 20 calibration lesions.
    """
    if len(embedding) < MIN_IMAGES or len(np.unique(lesions)) < MIN_LESIONS:
        return None
    unit = normalised(embedding)
    mean = unit.mean(axis=0)
    centred = unit - mean
    components = principal_directions(centred, max(1, min(directions, unit.shape[1] // 2, len(unit) // 10)))
    inside = centred @ components.T
    present, place = np.unique(y_true, return_inverse=True)
    means = np.stack([inside[place == c].mean(axis=0) for c in range(len(present))])
    whiten = _whitening(inside - means[place])
    class_means = means @ whiten
    distance = ((inside @ whiten)[:, None] - class_means[None]) ** 2
    nearest = distance.sum(axis=2).min(axis=1)
    residual = np.maximum((centred**2).sum(axis=1) - (inside**2).sum(axis=1), 0.0)
    scale = (max(float(nearest.mean()), 1e-9), max(float(residual.mean()), 1e-6))
    draft = Novelty(mean, components, whiten, class_means, scale, 1.0, share)  # until the calibration scores are known
    threshold = lesion_quantile(draft.score(calibrate), lesions, share)
    return Novelty(mean, components, whiten, class_means, scale, max(threshold, 1e-9), share)


def principal_directions(centred: Floats, k: int) -> Floats:
    """Return the k directions of largest spread, (k, d), rows orthonormal."""
    covariance = centred.T @ centred / len(centred)
    _, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors[:, ::-1][:, :k].T, np.float64)


def _whitening(centred: Floats) -> Floats:
    """Return (k, k) that makes the covariance within the classes the identity; a thousandth is added to its spread."""
    covariance = centred.T @ centred / len(centred)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values.max()) * 1e-3, 1e-12)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 0.0) + floor), np.float64)


def lesion_quantile(values: Floats, lesions: Ints, share: float) -> float:
    """Return the smallest of (n,) values with `share` of the lesions at or below it; each lesion counts once."""
    weights = 1.0 / np.bincount(lesions)[lesions]
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(cumulated, share - 1e-9)])


def fit_quality(qualities: Sequence[Quality]) -> QualityLimits:
    """Return limits no stricter than the defaults that at most 1 in 200 known images is beyond, each."""
    if not qualities:
        return DEFAULT_LIMITS
    limits = {}
    for name, default in DEFAULT_LIMITS.as_dict().items():
        side, measure = name.split("_", 1)
        values = [getattr(quality, measure) for quality in qualities]
        known = float(np.quantile(values, BEYOND if side == "min" else 1 - BEYOND))
        limits[name] = min(default, known) if side == "min" else max(default, known)
    return QualityLimits(**limits)


def fit_examples(
    model: Calibrated, runtime: Runtime, train: Labelled, *, seed: int, console: Console
) -> TrainingExamples | None:
    """Return the index of the training lesions, None where no image can be read.

    Args:
        train: all images of the role; the first of each lesion is taken. Of more than 7,000 lesions, fewer of the
            common classes are taken.
    """
    first = train.pick(first_of_lesion(train.lesions))
    most = most_per_class(first.y_true, MOST_EXAMPLES)
    chosen = first.pick(sample_per_class(first.y_true, seed=seed, most=most))
    sample = run_model(model, runtime, chosen, console, "Training examples")
    if not len(sample.y_true):
        return None
    record_of = dict(zip(chosen.lesions.tolist(), chosen.records, strict=True))
    return index_of(sample.embedding, sample.y_true, [record_of[n] for n in sample.lesions.tolist()], model.codes)


def index_of(
    embedding: npt.NDArray[np.floating], y_true: Ints, records: Sequence[Record], codes: tuple[str, ...]
) -> TrainingExamples:
    """Return the index of n images from their embeddings, (n, d); of an image's path only the file's name is stored."""
    unit = normalised(embedding)
    mean = unit.mean(axis=0)
    components = principal_directions(unit - mean, min(DIRECTIONS, unit.shape[1]))
    # rounded as they will be read, so that a training image has similarity 1 to itself
    mean, components = mean.astype(np.float32), components.astype(np.float16).astype(np.float32)
    places = place_of(embedding, mean, components).astype(np.float16)
    names = [(r.isic_id or Path(r.image).name, r.lesion_id or "", r.source or "", r.licence or "") for r in records]
    texts = dict(zip(TEXTS, zip(*names, strict=True), strict=True))
    return TrainingExamples(codes, mean, components, places, y_true, texts)


def first_of_lesion(lesions: Ints) -> Ints:
    """Return the ascending rows of the first image of each lesion."""
    return np.asarray(np.sort(np.unique(lesions, return_index=True)[1]), np.int64)


def most_per_class(y_true: Ints, total: int) -> int:
    """Return how many of each class may be taken so that no more than `total` are, small classes whole."""
    counts = np.sort(np.bincount(y_true, minlength=1))
    left = total
    for place, count in enumerate(counts.tolist()):
        share = left // (len(counts) - place)
        if count > share:
            return share
        left -= count
    return total
