"""A model against simple baselines: a linear probe on frozen features, and always the most common class.

A bundle stores what model and probe answered for every test image of its training (`baselines.npz`). `evaluate` on
that split compares them, paired over lesions, and says when the model is not better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.bundle import BASELINES_FILE, HASH_CHARS, Bundle
from dermlens.bundle.card import damaged
from dermlens.diagnoses import display_name
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import lesion_index, sampled_figure, weightings
from dermlens.evaluation.metrics import Floats, Ints
from dermlens.text import figure

MODEL, PROBE, MAJORITY = "model", "linear_probe", "majority"
BASELINES = (PROBE, MAJORITY)
MEASURES = ("balanced_accuracy", "accuracy")
ROWS = ("lesions", "truth", "model", "probe")
OTHER_IMAGES = (
    "No linear probe is available for these images: none is in the split that the model was tested on in its "
    "training. Whether the model is better than a probe here is not known."
)


@dataclass(frozen=True)
class AnswersOnTest:
    """The answers for the n test images of a training.

    Attributes:
        hashes: n content hashes of HASH_CHARS hex digits.
        truth, model, probe: (n,) class indices in the order of the bundle; lesions: (n,) lesion numbers.
        majority: the most common class among the training images.
    """

    hashes: tuple[str, ...]
    lesions: Ints
    truth: Ints
    model: Ints
    probe: Ints
    majority: int

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what `baselines.npz` holds; some 20 bytes an image."""
        packed = np.array([list(bytes.fromhex(digest)) for digest in self.hashes], np.uint8)
        rows = {name: getattr(self, name).astype(np.int32) for name in ROWS}
        return {"content_hash": packed, **rows, "majority": np.int32(self.majority)}


def read_test_answers(bundle: Bundle) -> AnswersOnTest:
    """Return what the bundle stores.

    Raises:
        BundleError: the file is damaged.
    """
    path = bundle.folder / BASELINES_FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            hashes = tuple(bytes(row).hex() for row in file["content_hash"])
            rows = {name: file[name].astype(np.int64) for name in ROWS}
            found = AnswersOnTest(hashes=hashes, **rows, majority=int(file["majority"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(f"{path}: {error!r}") from error
    classes = np.concatenate([found.truth, found.model, found.probe, [found.majority]])
    if {row.shape for row in rows.values()} != {(len(hashes),)} or not (
        (classes >= 0) & (classes < len(bundle.codes))
    ).all():
        raise damaged(f"{path}: rows that do not match, or unknown classes")
    return found


def compare_on(
    bundle: Bundle, digests: Sequence[str | None], truth: Ints, decision: Ints, lesions: Ints, *, seed: int
) -> dict[str, Any]:
    """Compare on those of the given images that the model was tested on in its training.

    Args:
        digests: SHA-256 of n images, hex; truth, decision: (n,) class indices; lesions: (n,) lesion numbers.

    Returns:
        `available`, and either `reason`, or the number of these images and the comparison.
    """
    answers = read_test_answers(bundle)
    places = {digest: place for place, digest in enumerate(answers.hashes)}
    found = np.array([places.get((digest or "")[:HASH_CHARS], -1) for digest in digests], dtype=np.int64)
    here, there = np.flatnonzero(found >= 0), found[found >= 0]
    if not len(here):
        return {"available": False, "reason": OTHER_IMAGES}
    hashes = tuple(answers.hashes[place] for place in there)
    now = AnswersOnTest(hashes, lesions[here], truth[here], decision[here], answers.probe[there], answers.majority)
    return {
        "available": True,
        "images": len(here),
        "images_scored": len(digests),
        "images_of_the_split": len(answers.hashes),
        "labels_changed": int((now.truth != answers.truth[there]).sum()),
        "decisions_changed": int((now.model != answers.model[there]).sum()),
        **compare_test_answers(now, bundle.codes, seed=seed),
    }


def compare_test_answers(answers: AnswersOnTest, codes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Return the figures of the three methods, the model's paired differences to the others, and what they mean.

    All three are scored on the same resamples as in `scores.score`.
    """
    truth, lesions = answers.truth, lesion_index(answers.lesions.tolist(), len(answers.truth))
    weights, occurring, count = weightings(truth, lesions, seed=seed), np.unique(truth), int(lesions.max()) + 1
    decisions = {MODEL: answers.model, PROBE: answers.probe, MAJORITY: np.full_like(truth, answers.majority)}
    methods: dict[str, dict[str, Any]] = {}
    samples: dict[str, dict[str, Floats]] = {}
    for name, decision in decisions.items():
        counts = metrics.class_counts(truth, decision, len(codes), weights)
        sensitivity, accuracy = metrics.sensitivity(counts), metrics.accuracy(counts)
        balanced = metrics.balanced_accuracy(counts, occurring)
        samples[name] = {"balanced_accuracy": balanced, "accuracy": accuracy}
        methods[name] = {
            "balanced_accuracy": sampled_figure(balanced, reason="no images"),
            "accuracy": sampled_figure(accuracy, reason="no images", lesions=count),
            "sensitivity": {
                codes[c]: sampled_figure(sensitivity[:, c], reason="no images of it") for c in occurring.tolist()
            },
        }
    gaps = {
        name: {m: sampled_figure(samples[MODEL][m] - samples[name][m], reason="no images") for m in MEASURES}
        for name in BASELINES
    }
    found = {
        "lesions": count,
        "majority_class": codes[answers.majority],
        "methods": methods,
        "model_minus": gaps,
        "better_than_probe": standing(gaps[PROBE]["balanced_accuracy"]) == "better",
    }
    return found | {"words": conclusions(found)}


def standing(difference: Mapping[str, Any]) -> str:
    """Return "better", "worse" or "alike": which side of 0 the whole interval lies on; without interval "alike"."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "alike"
    return "better" if low > 0 else "worse" if high < 0 else "alike"


def conclusions(found: Mapping[str, Any]) -> list[str]:
    """Return sentences: is the model better than the probe, and than always naming the most common class?"""
    probe, majority = (found["model_minus"][name] for name in BASELINES)
    gap = probe["balanced_accuracy"]
    difference = f"{figure(gap)} in balanced accuracy, in pairs over {found['lesions']} lesions"
    lines = {
        "better": [f"The model is better than the linear probe: by {difference}."],
        "worse": [
            f"The model is WORSE than the linear probe: by {difference}. Fine-tuning made it worse; train with "
            "`--fine-tune head` instead."
        ],
        "alike": [
            f"The model is NOT shown to be better than the linear probe: {difference}. These images show no gain from "
            "fine-tuning."
        ],
    }[standing(gap)]
    always = f"always answering {display_name(found['majority_class'])}"
    if standing(majority["balanced_accuracy"]) != "better":
        lines.append(f"The model is NOT shown to be better than {always}.")
    elif standing(majority["accuracy"]) != "better":
        lines.append(
            f"By accuracy alone the model is not better than {always} ({figure(majority['accuracy'])}): it gives "
            "all classes the same weight, so look at balanced accuracy and at the sensitivity of each class."
        )
    return lines


def describe_images(found: Mapping[str, Any]) -> str:
    """Say which images are compared, and what differs from the training."""
    others = found["images_scored"] - found["images"]
    parts = [
        f"On {found['images']} of the {found['images_of_the_split']} images that the model was tested on in its "
        "training" + (f" ({others} other images left out)" if others else "")
    ]
    if found["labels_changed"]:
        parts.append(f"{found['labels_changed']} have another label than in training")
    if found["decisions_changed"]:
        parts.append(
            f"the model's diagnosis is not that of its training for {found['decisions_changed']} (another "
            "case mix, calibration or framing)"
        )
    return "; ".join(parts)


def method_name(name: str, found: Mapping[str, Any]) -> str:
    """Return the name of a method for people."""
    common = f"always {display_name(found['majority_class'])}"
    return {MODEL: "this model", PROBE: "linear probe", MAJORITY: common}[name]


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """Return the comparison as lines for a terminal."""
    if not found["available"]:
        return [str(found["reason"])]
    rows = {method_name(name, found): row for name, row in found["methods"].items()}
    rows |= {f"minus {method_name(name, found)}": row for name, row in found["model_minus"].items()}
    width = max(map(len, rows))
    lines = [f"{describe_images(found)}:", f"  {'':{width}}  {'balanced accuracy':21}  accuracy"]
    for label, row in rows.items():
        lines.append(f"  {label:{width}}  {figure(row['balanced_accuracy']):21}  {figure(row['accuracy'])}")
    return [*lines, *found["words"]]
