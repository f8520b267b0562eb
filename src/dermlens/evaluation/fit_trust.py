"""A finished bundle and its images by role -> the bundle with all that it needs to know its own limits.

Fitted on the calibrate role (the novelty score also looks at images that were trained on), measured on the test role,
on the outputs of the runtime that will serve. Nothing is ever fitted on the test role.

Fits what training images look like, and the limits of a picture's quality.

Training images -> the index of training lesions that `predict --neighbours` names; one image of each lesion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.decision import decide, probabilities
from dermlens.bundle.nearest import TEXTS, TrainingExamples, place_of
from dermlens.bundle.novelty import Novelty, normalised
from dermlens.bundle.quality import DEFAULT_LIMITS, Quality, QualityLimits, measure
from dermlens.bundle.trust import Trust, TrustFacts
from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.errors import ImageError
from dermlens.evaluation.conformal import fit_sets, measure_sets
from dermlens.evaluation.metrics import Floats, Ints
from dermlens.evaluation.thresholds import REFERRAL, fit_points, measure_point, not_measured
from dermlens.inference.predictor import DECODE_THREADS
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

LEAST_SURE = 0.2  # the share of calibration answers that counts as unsure
SURE = 0.5  # a diagnosis as probable as all others together is not unsure
MIN_LESIONS = 20


@dataclass(frozen=True)
class Sample:
    """Readable images of one role: classes, lesion numbers, and what the model made of them."""

    y_true: Ints
    lesions: Ints
    embedding: np.ndarray
    probability: Floats
    decision: Ints
    qualities: tuple[Quality, ...]
    logits: np.ndarray


@dataclass(frozen=True)
class Labelled:
    """Images of one role with class index and lesion number, as the data set gives them."""

    records: Sequence[Record]
    y_true: Ints
    lesions: Ints


def fit_trust(
    bundle: Bundle, roles: Mapping[str, Labelled], *, seed: int, console: Console
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Fit the sets, the operating points, the novelty score and the limits of quality.

    Args:
        roles: of "train", "calibrate" and "test"; the first may be a part, the last may be missing.

    Returns:
        The `trust` object of bundle.json and the arrays of trust.npz.
    """
    runtime = Runtime(bundle.graph_path)
    known = roles["train"]
    rows = sample_per_class(known.y_true, seed=seed)
    part = Labelled([known.records[i] for i in rows], known.y_true[rows], known.lesions[rows])
    train = look(bundle, runtime, part, console, "Novelty, train")
    held_out = look(bundle, runtime, roles["calibrate"], console, "Novelty, calibrate")
    enough = len(np.unique(held_out.lesions)) >= MIN_LESIONS
    sets, basis = None, None
    if enough:
        sets, basis = fit_sets(held_out.probability, held_out.y_true, held_out.lesions, bundle.calibration.prior)
    novelty = fit_novelty(train.embedding, train.y_true, held_out.embedding, held_out.lesions)
    quality = fit_quality(held_out.qualities)
    points = fit_points(held_out.probability, held_out.y_true, held_out.lesions, bundle.codes)
    facts: dict[str, Any] = {
        "fitted_on": {
            "role": "calibrate",
            "images": len(held_out.y_true),
            "lesions": len(np.unique(held_out.lesions)),
            "training_images": len(train.y_true),
        },
        "prediction_sets": None
        if sets is None or basis is None
        else sets.as_dict() | {"basis": dict(zip(bundle.codes, basis, strict=True))},
        "min_confidence": _min_confidence(held_out) if enough else 0.0,
        "operating_points": points,
        "referral": REFERRAL if any(point["name"] == REFERRAL for point in points) else None,
        "novelty": None if novelty is None else novelty.as_dict(),
        "quality": quality.as_dict(),
    }
    measured_on, sample = "calibrate", held_out
    if "test" in roles and len(roles["test"].records):
        measured_on, sample = "test", look(bundle, runtime, roles["test"], console, "Novelty, test")
    for point in points:
        if measured_on == "test":
            point |= measure_point(point, sample.probability, sample.y_true, sample.lesions, bundle.codes, seed=seed)
        else:  # what a threshold reaches on the lesions that it was chosen on is no promise for others
            point |= not_measured("no test lesions")
    arrays = {} if novelty is None else novelty.arrays()
    fitted = msgspec.convert({**facts, "measured": None}, TrustFacts)
    trust = Trust.read(fitted, bundle.card.modality, arrays)
    measurable = len(sample.y_true) > 0
    facts["measured"] = {"role": measured_on, **_measure(bundle, sample, trust)} if measurable else None
    return facts, arrays


def look(bundle: Bundle, runtime: Runtime, images: Labelled, console: Console, what: str) -> Sample:
    """Run the model over images; one that cannot be read is left out."""
    kept, embeddings, logits, qualities = [], [], [], []
    with ThreadPoolExecutor(DECODE_THREADS) as pool, track(what, len(images.records), console) as advance:
        for start in range(0, len(images.records), BATCH):
            places, batch = readable(images.records[start : start + BATCH], bundle.input_spec, pool)
            kept += [start + place for place in places]
            if batch:
                outputs = runtime.run(np.stack(batch))
                embeddings.append(outputs.embedding)
                logits.append(outputs.logits)
                qualities += [measure(pixels) for pixels in batch]
            advance(min(BATCH, len(images.records) - start))
    classes, width = len(bundle.codes), bundle.head()[0].shape[0]
    empty = np.zeros((0, classes), np.float32)
    scores = np.concatenate([empty, *logits])
    probability = probabilities(scores, bundle.calibration)
    decision = decide(probability, bundle.calibration, bundle.decision_rule)
    rows = np.array(kept, dtype=np.int64)
    return Sample(
        images.y_true[rows],
        images.lesions[rows],
        np.concatenate([np.zeros((0, width), np.float32), *embeddings]),
        probability,
        decision,
        tuple(qualities),
        scores,
    )


def readable(
    records: Sequence[Record], spec: InputSpec, pool: ThreadPoolExecutor
) -> tuple[list[int], list[npt.NDArray[np.uint8]]]:
    """Decode images side by side; return the places of those that can be read, and their pixels."""

    def load(record: Record) -> npt.NDArray[np.uint8] | None:
        try:
            return load_image(record.path, spec, frame_aspect=record.frame_aspect)
        except ImageError:
            return None

    loaded = list(pool.map(load, records))
    places = [place for place, pixels in enumerate(loaded) if pixels is not None]
    return places, [pixels for pixels in loaded if pixels is not None]


def _min_confidence(sample: Sample) -> float:
    """The probability of the diagnosis that the least sure fifth of the lesions does not exceed.

    Each lesion counts once: an image of a lesion with m images weighs 1 / m.
    """
    chosen = sample.probability[np.arange(len(sample.decision)), sample.decision]
    return min(SURE, lesion_quantile(chosen, sample.lesions, LEAST_SURE))


def judged(trust: Trust, bundle: Bundle, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the status of each answer, (n,) text, and which classes its set holds, (n, classes) or None."""
    scores = None if trust.novelty is None else trust.novelty.score(sample.embedding)
    inside = None
    if trust.sets is not None:
        inside = trust.sets.apply(sample.probability, bundle.calibration.prior, sample.decision)
    statuses = []
    for row, quality in enumerate(sample.qualities):
        score = None if scores is None else float(scores[row])
        size = None if inside is None else int(inside[row].sum())
        statuses.append(trust.judge(quality, score, size, float(sample.probability[row, sample.decision[row]]))[0])
    return np.array(statuses), inside


def _measure(bundle: Bundle, sample: Sample, trust: Trust) -> dict[str, Any]:
    status, inside = judged(trust, bundle, sample)
    right = sample.decision == sample.y_true
    truth, lesions, codes = sample.y_true, sample.lesions, bundle.codes
    return {
        "images": len(right),
        "lesions": len(np.unique(sample.lesions)),
        "accuracy": float(right.mean()),
        "status": {
            name: {
                "share": float((status == name).mean()),
                "accuracy": float(right[status == name].mean()) if (status == name).any() else None,
            }
            for name in ("ok", "uncertain", "rejected")
        },
        "prediction_sets": None if inside is None else measure_sets(inside, truth, lesions, codes),
    }


KEPT = 0.95
DIRECTIONS = 64
PER_CLASS = 200  # images of a class that are looked at: with 600 the score is no better, and no class outweighs others
MIN_IMAGES = 40
BEYOND = 0.005  # share of known pictures that may lie beyond each limit of quality


def sample_per_class(y_true: Ints, *, seed: int, most: int = PER_CLASS) -> Ints:
    """Return ascending rows, at most `most` of each class."""
    generator = np.random.default_rng(seed)
    rows = [np.flatnonzero(y_true == c) for c in np.unique(y_true)]
    return np.sort(np.concatenate([r if len(r) <= most else generator.choice(r, most, replace=False) for r in rows]))


def fit_novelty(
    embedding: npt.NDArray[np.floating],
    y_true: Ints,
    held_out: npt.NDArray[np.floating],
    lesions: Ints,
    *,
    kept: float = KEPT,
    directions: int = DIRECTIONS,
) -> Novelty | None:
    """Fit the score on training images and its threshold on lesions that the network has not learned from.

    Args:
        embedding: (n, d) of training images, y_true: (n,) their classes.
        held_out: (m, d) of other images, lesions: (m,) their lesion numbers.
        kept: share of those lesions that lies at or below the threshold.

    Returns:
        None where there are fewer than 40 training images or 20 held-out lesions.
    """
    if len(embedding) < MIN_IMAGES or len(np.unique(lesions)) < MIN_LESIONS:
        return None
    unit = normalised(embedding)
    mean = unit.mean(axis=0)
    k = max(1, min(directions, unit.shape[1] // 2, len(unit) // 10))
    components = principal_directions(unit - mean, k)
    inside = (unit - mean) @ components.T
    present, place = np.unique(y_true, return_inverse=True)
    means = np.stack([inside[place == c].mean(axis=0) for c in range(len(present))])
    whiten = _whitening(inside - means[place])
    # a first threshold stands in until the held-out scores are known
    draft = Novelty(mean, components, whiten, means @ whiten, (1.0, 1.0), 1.0, kept)
    distance, residual = _parts(draft, unit)
    scale = (max(float(distance.mean()), 1e-9), max(float(residual.mean()), 1e-6))
    scaled = Novelty(mean, components, whiten, means @ whiten, scale, 1.0, kept)
    threshold = lesion_quantile(scaled.score(held_out), lesions, kept)
    return Novelty(mean, components, whiten, means @ whiten, scale, max(threshold, 1e-9), kept)


def principal_directions(centred: Floats, k: int) -> Floats:
    """Return the k directions of largest spread, (k, d), rows orthonormal."""
    covariance = centred.T @ centred / len(centred)
    _, vectors = np.linalg.eigh(covariance)
    top: Floats = vectors[:, ::-1][:, :k].T
    return top


def _whitening(centred: Floats) -> Floats:
    """Return (k, k) that makes the covariance within the classes the identity; a thousandth is added to its spread."""
    covariance = centred.T @ centred / len(centred)
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values.max()) * 1e-3, 1e-12)
    whiten: Floats = vectors / np.sqrt(np.maximum(values, 0.0) + floor)
    return whiten


def _parts(novelty: Novelty, unit: Floats) -> tuple[Floats, Floats]:
    """Return squared distance to the nearest class inside, and squared residual outside, each (n,)."""
    centred = unit - novelty.mean
    inside = centred @ novelty.components.T
    whitened = inside @ novelty.whiten
    distances = ((whitened[:, None] - novelty.class_means[None]) ** 2).sum(axis=2).min(axis=1)
    residual = np.maximum((centred**2).sum(axis=1) - (inside**2).sum(axis=1), 0.0)
    return distances, residual


def lesion_quantile(values: Floats, lesions: Ints, share: float) -> float:
    """Return the smallest of (n,) values at or below which `share` of the lesions lies, each lesion counted once."""
    weights = 1.0 / np.bincount(lesions)[lesions]
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(cumulated, share - 1e-9)])


def fit_quality(qualities: Sequence[Quality]) -> QualityLimits:
    """Return limits no stricter than the defaults that at most 1 in 200 known pictures is beyond, each."""
    if not qualities:
        return DEFAULT_LIMITS
    limits = {}
    for name, default in DEFAULT_LIMITS.as_dict().items():
        side, measure = name.split("_", 1)
        values = [getattr(quality, measure) for quality in qualities]
        known = float(np.quantile(values, BEYOND if side == "min" else 1 - BEYOND))
        limits[name] = min(default, known) if side == "min" else max(default, known)
    return QualityLimits(**limits)


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
    runtime = Runtime(bundle.graph_path)
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
