"""May a model be served in bfloat16? Decided on held-out lesions of the calibrate role, never on the test role.

It may when decisions agree with float32 on at least 99 % of the images, the 99th percentile of the change in
probability is at most 0.05, the 95 % interval of the difference in balanced accuracy, over lesions, reaches 0, and the
calibration error stays within the interval of float32's. Each precision is calibrated on its own outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.data.images import load_image
from dermlens.data.records import Record
from dermlens.errors import ImageError
from dermlens.evaluation import metrics, weighted
from dermlens.evaluation.bootstrap import lesion_index, paired_difference, resample_weights, sampled_figure
from dermlens.evaluation.calibration import fit_calibration
from dermlens.evaluation.trust_fit import MIN_LESIONS, Labelled, fit_trust
from dermlens.evaluation.weighted import Floats, Ints
from dermlens.inference.bundle import Bundle
from dermlens.inference.decision import Calibration, DecisionRule, decide, probabilities
from dermlens.inference.precision import BFLOAT16, FLOAT32, has_bfloat16
from dermlens.inference.predict import DECODE_THREADS
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

AGREEMENT, CHANGE = 0.99, 0.05


def choose_precision(
    bundle: Bundle, roles: Mapping[str, Labelled], *, seed: int, console: Console
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """Run the gate and, where it is passed, fit the facts of bfloat16.

    Args:
        bundle: with the facts of float32.
        roles: as for `fit_trust`.

    Returns:
        The `precision` object of bundle.json and the arrays of trust_bf16.npz.
    """
    held_out = roles["calibrate"]
    count = len(np.unique(held_out.lesions))
    if not has_bfloat16():
        return _float32("not tried in bfloat16: this processor has no instructions for it"), {}
    if count < MIN_LESIONS:
        return _float32(f"not tried in bfloat16: {count} held-out lesions, at least {MIN_LESIONS} are needed"), {}
    (full, low), kept = both_logits(bundle, held_out.records, console)
    truth, lesions = held_out.y_true[kept], held_out.lesions[kept]
    own = bundle.calibration
    if bundle.calibrated:
        own = fit_calibration(low, truth, lesions, prior=own.prior, training_prior=own.training_prior)
    found = compare(truth, lesions, (full, low), (bundle.calibration, own), bundle.decision_rule, seed=seed)
    gate = {"role": "calibrate", **found}
    if not gate["passed"]:
        return {"policy": FLOAT32, "gate": gate}, {}
    twin = replace(bundle, precision=BFLOAT16, calibration=own)
    facts, arrays = fit_trust(twin, roles, seed=seed, console=console)
    return {"policy": BFLOAT16, "gate": gate, BFLOAT16: {"calibration": own.as_dict(), "trust": facts}}, arrays


def _float32(reason: str) -> dict[str, Any]:
    return {"policy": FLOAT32, "gate": None, "reason": reason}


def both_logits(
    bundle: Bundle, records: Sequence[Record], console: Console, low: str = BFLOAT16
) -> tuple[tuple[np.ndarray, np.ndarray], Ints]:
    """Return the logits of the float32 graph and of the one at lower precision, and which images could be read."""
    runtimes = [Runtime(bundle.graph_path, precision=name) for name in (FLOAT32, low)]
    logits: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    kept: list[int] = []

    def pixels(record: Record) -> np.ndarray | None:
        try:
            return load_image(record.path, bundle.input_spec, frame_aspect=record.frame_aspect)
        except ImageError:
            return None

    with ThreadPoolExecutor(DECODE_THREADS) as pool, track("Precision", len(records), console) as advance:
        for start in range(0, len(records), BATCH):
            loaded = list(pool.map(pixels, records[start : start + BATCH]))
            good = [image for image in loaded if image is not None]
            kept += [start + place for place, image in enumerate(loaded) if image is not None]
            for runtime, rows in zip(runtimes, logits, strict=True):
                if good:
                    rows.append(runtime.run(np.stack(good)).logits)
            advance(len(loaded))
    empty = np.zeros((0, len(bundle.codes)), np.float32)
    return tuple(np.concatenate([empty, *rows]) for rows in logits), np.array(kept, np.int64)  # type: ignore[return-value]


def compare(
    truth: Ints,
    lesions: Ints,
    logits: tuple[np.ndarray, np.ndarray],
    calibrations: tuple[Calibration, Calibration],
    rule: DecisionRule,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a lower precision (second) with float32 (first) on the same n images.

    Returns:
        The figures, `passed`, and `failed`: what it failed by, in words.
    """
    full, low = (probabilities(rows, own) for rows, own in zip(logits, calibrations, strict=True))
    decided, lowered = (decide(shares, own, rule) for shares, own in zip((full, low), calibrations, strict=True))
    change = np.abs(full - low).max(axis=1)
    accuracy = paired_difference(truth, lowered, decided, lesions, seed=seed)
    ece = _calibration_error(truth, lesions, full, seed=seed)
    lowered_ece = metrics.expected_calibration_error(truth, low)
    found: dict[str, Any] = {
        "images": len(truth),
        "lesions": len(np.unique(lesions)),
        "agreement": float((decided == lowered).mean()),
        "change_p99": float(np.percentile(change, 99)),
        "change_max": float(change.max()),
        "balanced_accuracy_difference": accuracy,
        "ece": ece,
        "ece_low": lowered_ece,
    }
    failed = []
    if found["agreement"] < AGREEMENT:
        failed.append(f"decisions agree on {found['agreement']:.2%}, at least {AGREEMENT:.0%} must")
    if found["change_p99"] > CHANGE:
        failed.append(f"99 % of the probabilities move by up to {found['change_p99']:.3f}, allowed is {CHANGE}")
    if accuracy["high"] < 0:
        failed.append("balanced accuracy is lower")
    if ece["high"] is not None and lowered_ece > ece["high"]:
        failed.append("the calibration error is larger")
    return {**found, "passed": not failed, "failed": failed}


def _calibration_error(truth: Ints, lesions: Ints, shares: Floats, *, seed: int) -> dict[str, Any]:
    """Return the expected calibration error with a 95 % interval over lesions."""
    confidence, correct = metrics.top_label(truth, shares)
    bins = metrics.equal_mass_bins(confidence)
    blocks = resample_weights(truth, lesion_index(lesions.tolist(), len(truth)), resamples=1000, seed=seed)
    samples = [weighted.calibration_error(confidence, correct, bins, w) for w in (np.ones((1, len(truth))), *blocks)]
    return sampled_figure(np.concatenate(samples), reason="too few images")
