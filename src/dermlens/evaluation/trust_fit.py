"""A finished bundle and its images by role -> the bundle with all that it needs to know its own limits.

Fitted on the calibrate role (the novelty score also looks at images that were trained on), measured on the test role,
on the outputs of the runtime at the precision that will serve. Nothing is ever fitted on the test role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.data.images import InputSpec, load_image
from dermlens.data.records import Record
from dermlens.errors import ImageError
from dermlens.evaluation.conformal import fit_sets, measure_sets
from dermlens.evaluation.novelty_fit import fit_novelty, fit_quality, lesion_quantile, sample_per_class
from dermlens.evaluation.operating_points import REFERRAL, fit_points, measure_point, not_measured
from dermlens.evaluation.weighted import Floats, Ints
from dermlens.inference.bundle import Bundle
from dermlens.inference.decision import decide, probabilities
from dermlens.inference.predict import DECODE_THREADS
from dermlens.inference.quality import Quality, measure
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.inference.trust import Trust
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
    runtime = Runtime(bundle.graph_path, precision=bundle.precision)
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
    trust = Trust.read({**bundle.card, "trust": facts}, arrays)
    measurable = trust is not None and len(sample.y_true)
    facts["measured"] = {"role": measured_on, **_measure(bundle, sample, trust)} if trust and measurable else None
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
