"""A calibrated model and its images by role -> what it needs to know its own limits.

The lesions that sets, doubt and referral are computed from, the kind of sets, the novelty score, limits of image
quality, and the index of training lesions that `predict --neighbours` names. Fitted on the calibrate role (the novelty
score also on training images; the kind of sets chosen on the select role), measured on the test role, all on the
outputs of the runtime that will serve. Nothing is ever fitted on the test role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.bundle.bundle import LESIONS_FILE, TRUST_FILE
from dermlens.bundle.case_mix import CaseMix
from dermlens.bundle.limits import (
    LEVEL,
    METHODS,
    MIN_LESIONS,
    ROLES,
    SENSITIVITIES,
    Lesions,
    Limits,
    SetMethod,
    SetRule,
    fit_limits,
    fit_set_limit,
    measure_sets,
    mix_weights,
    order_of,
    set_scores,
)
from dermlens.bundle.nearest import TEXTS, TrainingExamples, place_of
from dermlens.bundle.novelty import Novelty, normalised
from dermlens.bundle.probabilities import Calibration, probabilities
from dermlens.bundle.quality import DEFAULT_LIMITS, Quality, QualityLimits, measure
from dermlens.bundle.trust import Trust, TrustFacts
from dermlens.data.images import InputSpec, Pixels, load_image
from dermlens.data.records import Record
from dermlens.errors import ImageError
from dermlens.evaluation.metrics import Floats, Ints
from dermlens.inference.judge import ADVICE, Judgement, Scope, judge
from dermlens.inference.predictor import DECODE_THREADS
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

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
    def case_mix(self) -> CaseMix: ...
    @property
    def modality(self) -> str: ...


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
    """The readable images of one role: classes (n,), lesion numbers (n,), and the model's outputs for them.

    Probabilities are those of the model's own case mix.
    """

    y_true: Ints
    lesions: Ints
    embedding: npt.NDArray[np.float32]
    probability: Floats
    decision: Ints
    qualities: tuple[Quality, ...]
    logits: npt.NDArray[np.float32]

    @property
    def known(self) -> Lesions:
        """What the bundle stores of it."""
        return Lesions(self.logits, self.y_true, self.lesions)

    def answered_by(self, model: Calibrated) -> Sample:
        """Return it with the probabilities and decisions of another calibration or case mix of the same network."""
        probability = probabilities(self.logits, model.calibration, model.case_mix.of(model.codes))
        return replace(self, probability=probability, decision=np.asarray(order_of(probability)[:, 0], np.int64))


def fit_trust(
    model: Calibrated,
    runtime: Runtime,
    roles: Mapping[str, Labelled],
    *,
    sensitivity: float = SENSITIVITIES[0],
    seed: int,
    console: Console,
) -> tuple[dict[str, Any], dict[str, dict[str, npt.NDArray[Any]]]]:
    """Fit the kind of sets, the novelty score and the quality limits, and measure what answers reach.

    Args:
        runtime: the model's graph.
        roles: of "train", "select", "calibrate" and "test"; the first may be a part, select and test may be missing.
        sensitivity: of the operating point that answers follow.

    Returns:
        The `trust` object of bundle.json, and the arrays of trust.npz and lesions.npz by file name.
    """
    known = roles["train"].pick(sample_per_class(roles["train"].y_true, seed=seed))
    train = run_model(model, runtime, known, console, "Novelty, train")
    samples = {
        role: run_model(model, runtime, roles.get(role, Labelled((), *_NOBODY)), console, f"Limits, {role}")
        for role in ("select", *ROLES)
    }
    fitted_on, lesions = samples["calibrate"], len(np.unique(samples["calibrate"].lesions))
    novelty = fit_novelty(train.embedding, train.y_true, fitted_on.embedding, fitted_on.lesions)
    facts: dict[str, Any] = {
        "fitted_on": {
            "role": "calibrate",
            "images": len(fitted_on.y_true),
            "lesions": lesions,
            "training_images": len(train.y_true),
        },
        "prediction_sets": choose_sets(model, fitted_on.known, samples["select"].known),
        "sensitivity": sensitivity,
        "novelty": None if novelty is None else novelty.as_dict(),
        "quality": fit_quality(fitted_on.qualities).as_dict(),
    }
    trust = {} if novelty is None else novelty.arrays()
    measured = measure_answers(model, samples, facts, trust)
    stored = {name: array for role in ROLES for name, array in samples[role].known.arrays(role).items()}
    return {**facts, "measured": measured}, {TRUST_FILE: trust, LESIONS_FILE: stored}


_NOBODY = np.zeros(0, np.int64), np.zeros(0, np.int64)


def choose_sets(model: Calibrated, fitted_on: Lesions, select: Lesions) -> dict[str, Any] | None:
    """Return the `SetRule` whose lists are shorter on the select lesions; None where too few lesions are known."""
    if len(np.unique(fitted_on.lesions)) < MIN_LESIONS:
        return None
    shares = model.case_mix.of(model.codes)
    shown, seen = (probabilities(each.logits, model.calibration, shares) for each in (fitted_on, select))
    weights = mix_weights(select.classes, select.lesions, shares)
    lengths: dict[SetMethod, float] = {}
    for method in METHODS:
        limit = fit_set_limit(shown, fitted_on, model.codes, shares, method, LEVEL)
        inside = set_scores(seen, method) <= limit
        lengths[method] = float(weights @ np.maximum(inside.sum(axis=1), 1)) if len(weights) else 0.0
    method = min(METHODS, key=lambda name: lengths[name])
    return SetRule(method, LEVEL, lengths if len(weights) else None).as_dict()


def limits_for(model: Calibrated, known: Mapping[str, Lesions], facts: Mapping[str, Any]) -> Limits:
    """Return the limits at the model's own case mix, from the lesions of both roles and a `trust` object."""
    rule = facts["prediction_sets"]
    rule = None if rule is None else msgspec.convert(rule, SetRule)
    mix, sensitivity = model.case_mix, facts["sensitivity"]
    return fit_limits(mix, model.codes, model.calibration, known, rule=rule, sensitivity=sensitivity)


def measure_answers(
    model: Calibrated,
    samples: Mapping[str, Sample],
    facts: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[np.floating]],
) -> dict[str, Any] | None:
    """Return status, advice and sets on the test role, else on the lesions that the limits were fitted on."""
    role = "test" if len(samples["test"].y_true) else "calibrate"
    sample = samples[role]
    if not len(sample.y_true):
        return None
    limits = limits_for(model, {name: samples[name].known for name in ROLES}, facts)
    trust = Trust.read(msgspec.convert({**facts, "measured": None}, TrustFacts), arrays)
    judged = judge_sample(model, trust, limits, sample)
    status = np.array([each["status"] for each in judged])
    right, inside = sample.decision == sample.y_true, limits.sets(sample.probability)
    shares = {
        name: {
            "share": float((status == name).mean()),
            "accuracy": float(right[status == name].mean()) if (status == name).any() else None,
        }
        for name in ("ok", "uncertain", "rejected")
    }
    return {
        "role": role,
        "images": len(right),
        "lesions": len(np.unique(sample.lesions)),
        "accuracy": float(right.mean()),
        "status": shares,
        "advice": {code: n for code in ADVICE if (n := sum(each["advice"].code == code for each in judged))},
        "prediction_sets": None if inside is None else measure_sets(inside, sample.known, model.codes, limits.shares),
    }


def judge_sample(model: Calibrated, trust: Trust, limits: Limits, sample: Sample) -> list[Judgement]:
    """Return what each answer says beside its probabilities."""
    scores = [None] * len(sample.y_true) if trust.novelty is None else trust.novelty.score(sample.embedding).tolist()
    scope = Scope(model.codes, trust, model.modality)
    rows = zip(sample.probability, scores, sample.qualities, strict=True)
    return [judge(scope, limits, *row) for row in rows]


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
    probability = probabilities(scores, model.calibration, model.case_mix.of(model.codes))
    chosen = np.array(rows, dtype=np.int64)
    return Sample(
        images.y_true[chosen],
        images.lesions[chosen],
        np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
        probability,
        np.asarray(order_of(probability)[:, 0], np.int64),
        tuple(qualities),
        scores,
    )


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
