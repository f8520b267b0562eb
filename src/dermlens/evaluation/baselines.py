"""A model beside the simplest answers: a linear probe on frozen features, and always the most common class.

A bundle keeps what model and probe said of every test image of its training (`baselines.npz`), so that `evaluate` on
that split can set them side by side, in pairs over lesions, and say when the model is not better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermlens.bundle.bundle import BASELINES_FILE, HASH_CHARS, Bundle
from dermlens.diagnoses import display_name
from dermlens.errors import BundleError
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import lesion_index, resample_weights, sampled_figure
from dermlens.evaluation.metrics import Floats, Ints
from dermlens.text import figure

MODEL, PROBE, MAJORITY = "model", "linear_probe", "majority"
BASELINES = (PROBE, MAJORITY)
MEASURES = ("balanced_accuracy", "accuracy")
RESAMPLES = 1000
ROWS = ("lesions", "truth", "model", "probe")


@dataclass(frozen=True)
class HeldOut:
    """What was said of the n test images of a training.

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


def read_held_out(bundle: Bundle) -> HeldOut:
    """Return what the bundle keeps.

    Raises:
        BundleError: the file does not hold what it should.
    """
    path = bundle.folder / BASELINES_FILE
    try:
        with np.load(path, allow_pickle=False) as file:
            hashes = tuple(bytes(row).hex() for row in file["content_hash"])
            rows = {name: file[name].astype(np.int64) for name in ROWS}
            found = HeldOut(hashes=hashes, **rows, majority=int(file["majority"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(bundle, repr(error)) from error
    classes = np.concatenate([found.truth, found.model, found.probe, [found.majority]])
    if {row.shape for row in rows.values()} != {(len(hashes),)} or not (
        (classes >= 0) & (classes < len(bundle.codes))
    ).all():
        raise _damaged(bundle, "rows that do not match, or unknown classes")
    return found


def _damaged(bundle: Bundle, why: str) -> BundleError:
    return BundleError(
        f"The model bundle is damaged: {bundle.folder / BASELINES_FILE}: {why}.",
        remedy="Copy the bundle again, reinstall dermlens, or train the model again.",
        code="bundle_damaged",
    )


def compare_held_out(held: HeldOut, codes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Compare on all test images of the training, for the card of the bundle."""
    return _compared(held.truth, held.model, held.probe, held.majority, held.lesions, codes, seed=seed)


def compare_on(
    bundle: Bundle, digests: Sequence[str | None], truth: Ints, decision: Ints, lesions: Ints, *, seed: int
) -> dict[str, Any]:
    """Compare on those of the given images that the model was tested on in its training.

    Args:
        digests: SHA-256 of n images, hex; truth, decision: (n,) class indices; lesions: (n,) lesion numbers.

    Returns:
        `available`, and either `reason`, or how many images these are and all that `_compared` tells.
    """
    held = read_held_out(bundle)
    places = {digest: place for place, digest in enumerate(held.hashes)}
    found = np.array([places.get((digest or "")[:HASH_CHARS], -1) for digest in digests], dtype=np.int64)
    here = np.flatnonzero(found >= 0)
    if not len(here):
        return {"available": False, "reason": OTHER_IMAGES}
    there = found[here]
    return {
        "available": True,
        "images": len(here),
        "images_scored": len(digests),
        "images_of_the_split": len(held.hashes),
        "labels_changed": int((truth[here] != held.truth[there]).sum()),
        "decisions_changed": int((decision[here] != held.model[there]).sum()),
        **_compared(
            truth[here], decision[here], held.probe[there], held.majority, lesions[here], bundle.codes, seed=seed
        ),
    }


OTHER_IMAGES = (
    "No linear probe is available for these images: none is of the split that the model was tested on in its "
    "training. Whether the model is better than a probe here is not known."
)


def _compared(
    truth: Ints, model: Ints, probe: Ints, majority: int, lesions: Ints, codes: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Return the figures of the three, the differences of the model to the others in pairs, and what that means."""
    lesions = lesion_index(lesions.tolist(), len(truth))  # in the order of `scores.score`, for the same resamples
    decisions = {MODEL: model, PROBE: probe, MAJORITY: np.full(len(truth), majority, dtype=np.int64)}
    samples = _samples(truth, decisions, lesions, len(codes), seed)
    count = int(lesions.max()) + 1
    result: dict[str, Any] = {
        "lesions": count,
        "majority_class": codes[majority],
        "methods": {name: _figures(rows, truth, count, codes) for name, rows in samples.items()},
        "model_minus": {
            name: {m: sampled_figure(samples[MODEL][m] - samples[name][m], reason="no images") for m in MEASURES}
            for name in BASELINES
        },
    }
    result["better_than_probe"] = standing(result["model_minus"][PROBE]["balanced_accuracy"]) == "better"
    result["words"] = words(result)
    return result


def _samples(
    truth: Ints, decisions: Mapping[str, Ints], lesions: Ints, n_classes: int, seed: int
) -> dict[str, dict[str, Floats]]:
    """Return method -> measure -> values (1 + resamples,), the value itself first; the same resamples for all."""
    blocks = resample_weights(truth, lesions, resamples=RESAMPLES, seed=seed)
    weights = np.concatenate([np.ones((1, len(truth))), *blocks])
    occurring = np.unique(truth)
    result = {}
    for name, decision in decisions.items():
        counts = metrics.class_counts(truth, decision, n_classes, weights)
        sensitivity = metrics.sensitivity(counts)
        rows = {"balanced_accuracy": sensitivity[:, occurring].mean(axis=1), "accuracy": metrics.accuracy(counts)}
        result[name] = rows | {f"sensitivity_{c}": sensitivity[:, c] for c in range(n_classes)}
    return result


def _figures(rows: Mapping[str, Floats], truth: Ints, lesions: int, codes: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {m: sampled_figure(rows[m], reason="no images") for m in MEASURES}
    found["accuracy"] = sampled_figure(rows["accuracy"], reason="no images", lesions=lesions)
    found["sensitivity"] = {
        code: sampled_figure(rows[f"sensitivity_{c}"], reason="no images of it")
        for c, code in enumerate(codes)
        if (truth == c).any()
    }
    return found


def standing(difference: Mapping[str, Any]) -> str:
    """Return "better", "worse" or "alike": which side of 0 the whole interval lies on; without interval "alike"."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "alike"
    return "better" if low > 0 else "worse" if high < 0 else "alike"


def words(found: Mapping[str, Any]) -> list[str]:
    """Say plainly whether the model is better than the probe and than always naming the most common class."""
    probe, majority = (found["model_minus"][name] for name in BASELINES)
    gap = probe["balanced_accuracy"]
    difference = f"{figure(gap)} in balanced accuracy, in pairs over {found['lesions']} lesions"
    lines = {
        "better": [f"The model is better than the linear probe: by {difference}."],
        "worse": [
            f"The model is WORSE than the linear probe: by {difference}. Its fine-tuning has done harm; "
            "`--fine-tune head` would serve better."
        ],
        "alike": [
            f"The model is NOT shown to be better than the linear probe: {difference}. Fine-tuning has gained nothing "
            "that these images can show."
        ],
    }[standing(gap)]
    always = f"always answering {display_name(found['majority_class'])}"
    if standing(majority["balanced_accuracy"]) != "better":
        lines.append(f"The model is NOT shown to be better than {always}.")
    elif standing(majority["accuracy"]) != "better":
        lines.append(
            f"By accuracy alone the model is not better than {always} ({figure(majority['accuracy'])}): it weighs all "
            "classes alike, so judge it by balanced accuracy and by the sensitivity of each class."
        )
    return lines


def where(found: Mapping[str, Any]) -> str:
    """Say on which images the comparison stands, and what is not as it was in training."""
    others = found["images_scored"] - found["images"]
    parts = [
        f"On {found['images']} of the {found['images_of_the_split']} images that the model was tested on in its "
        "training" + (f" ({others} other images left out)" if others else "")
    ]
    if found["labels_changed"]:
        parts.append(f"{found['labels_changed']} carry another label than there")
    if found["decisions_changed"]:
        parts.append(f"the model decides {found['decisions_changed']} of them otherwise than there (other framing?)")
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
    lines = [f"{where(found)}:", f"  {'':{width}}  {'balanced accuracy':21}  accuracy"]
    for label, row in rows.items():
        lines.append(f"  {label:{width}}  {figure(row['balanced_accuracy']):21}  {figure(row['accuracy'])}")
    return [*lines, *found["words"]]
