"""A finished bundle -> the same network with another calibration: fitted on its calibrate role, measured on its test.

Figures and baselines of the test role follow; the trust facts (`refit.py`) must be fitted again afterwards, since they
are limits on the probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dermlens.audit.findings import hash_records
from dermlens.bundle.bundle import HASH_CHARS, Bundle, add_baselines, load_bundle
from dermlens.bundle.card_text import bias_words, model_card
from dermlens.bundle.decision import decide, probabilities
from dermlens.errors import DataError
from dermlens.evaluation.baselines import HeldOut, compare_held_out, read_held_out
from dermlens.evaluation.bootstrap import paired_difference
from dermlens.evaluation.calibration import SEPARATED, choose_calibration
from dermlens.evaluation.fit_trust import Labelled, Sample, look
from dermlens.evaluation.metrics import balanced_accuracy_score
from dermlens.evaluation.scores import score
from dermlens.inference.runtime import Runtime


def recalibrate(folder: Path, roles: Mapping[str, Labelled], *, seed: int, console: Console) -> Path:
    """Fit temperature and biases of the bundle at `folder` again, at its own priors, and write them with its card.

    Args:
        roles: of "calibrate" and "test", as they were in the training.

    Raises:
        DataError: too few lesions to calibrate on, or images of the test role are missing.
        StorageError: it cannot be written; the bundle is untouched.
    """
    bundle = load_bundle(folder)
    runtime = Runtime(bundle.graph_path)
    known = look(bundle, runtime, roles["calibrate"], console, "Outputs, calibrate")
    tested = look(bundle, runtime, roles["test"], console, "Outputs, test")
    if len(tested.y_true) != bundle.card["metrics"]["n"]:
        raise DataError(
            f"The data hold {len(tested.y_true)} of the {bundle.card['metrics']['n']} images that the model was "
            "tested on. All are needed: figures from before and after would else not be of the same images.",
            remedy="Give the data set that the model was made from, unchanged.",
            code="not_its_data",
        )
    old = bundle.calibration
    fitted, found = choose_calibration(
        known.logits,
        known.y_true,
        known.lesions.tolist(),
        prior=old.prior,
        training_prior=old.training_prior,
        seed=seed,
    )
    separated = fitted.temperature == 1.0
    card = {
        **bundle.card,
        "calibration": fitted.as_dict(),
        "calibration_fit": {
            "fitted": not separated,
            "reason": SEPARATED if separated else None,
            "lesions": len(np.unique(known.lesions)),
            "bias": found.as_dict(),
        },
    }
    console.print(f"Temperature {fitted.temperature:.3f}. {bias_words(found.as_dict())}", highlight=False)
    probability = probabilities(tested.logits, fitted)
    decision = decide(probability, fitted, bundle.decision_rule)
    card, arrays = _measured(card, bundle, roles["test"], tested, probability, decision, seed=seed)
    before = balanced_accuracy_score(tested.y_true, tested.decision)
    now = balanced_accuracy_score(tested.y_true, decision)
    console.print(f"Balanced accuracy on the test role: {before:.3f} before, {now:.3f} now.", highlight=False)
    add_baselines(folder, card, arrays, model_card(card))
    return folder


def _measured(
    card: dict[str, Any],
    bundle: Bundle,
    images: Labelled,
    sample: Sample,
    probability: np.ndarray,
    decision: np.ndarray,
    *,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the card with the figures of the test role, and the arrays of `baselines.npz`; none where it has none."""
    lesions = sample.lesions.tolist()
    metrics = score(sample.y_true, probability, decision, lesions, bundle.codes, seed=seed)
    card = {**card, "metrics": {"split": "test role", **metrics}}
    held = read_held_out(bundle)
    if held is None:
        return card, {}
    held = _answered(held, images, decision)
    card["baselines"] = compare_held_out(held, bundle.codes, seed=seed)
    gain = paired_difference(held.truth, held.model, held.probe, held.lesions.tolist(), seed=seed)
    card["probe"] = {**card["probe"], "model_minus_probe_balanced_accuracy": gain}
    return card, held.arrays()


def _answered(held: HeldOut, images: Labelled, decision: np.ndarray) -> HeldOut:
    """Put new decisions in the place of the old ones, image by image."""
    told = {
        str(digest)[:HASH_CHARS]: int(code) for digest, code in zip(hash_records(images.records), decision, strict=True)
    }
    missing = sum(digest not in told for digest in held.hashes)
    if missing:
        raise DataError(
            f"{missing} of {len(held.hashes)} images that the linear probe was compared on are not among the data.",
            remedy="Give the data set that the model was made from, unchanged.",
            code="not_its_data",
        )
    return replace(held, model=np.array([told[digest] for digest in held.hashes], dtype=np.int64))
