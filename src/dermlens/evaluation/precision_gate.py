"""May a model be served in bfloat16? Decided on held-out lesions of the calibrate role, never on the test role.

It may when decisions agree with float32 on at least 99 % of the images, the 99th percentile of the change in
probability is at most 0.05, the 95 % interval of the difference in balanced accuracy, over lesions, reaches 0, and the
calibration error stays within the interval of float32's. Each precision is calibrated on its own outputs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dermlens.bundle.bundle import Bundle
from dermlens.bundle.decision import Calibration, DecisionRule, decide, probabilities
from dermlens.data.images import InputSpec
from dermlens.data.records import Record
from dermlens.evaluation import metrics
from dermlens.evaluation.bootstrap import lesion_index, paired_difference, resample_weights, sampled_figure
from dermlens.evaluation.calibration import fit_calibration
from dermlens.evaluation.fit_trust import MIN_LESIONS, Labelled, fit_trust, readable
from dermlens.evaluation.metrics import Floats, Ints
from dermlens.evaluation.precision_layers import heavy_layers, keeping_float32
from dermlens.inference.precision import BFLOAT16, FLOAT32, has_bfloat16
from dermlens.inference.predictor import DECODE_THREADS
from dermlens.inference.runtime import BATCH, Runtime
from dermlens.reporting.progress import track

AGREEMENT, CHANGE = 0.99, 0.05
KEPT = (0.0, 1 / 3)  # shares of the layers, from the first on, that stay in float32: the first that passes is taken


def choose_precision(
    bundle: Bundle, roles: Mapping[str, Labelled], *, seed: int, console: Console
) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]], str | None]:
    """Run the gate, on all layers and on all but the first, and fit the facts of bfloat16 for what passes it first.

    Args:
        bundle: with the facts of float32.
        roles: as for `fit_trust`.

    Returns:
        The `precision` object of bundle.json, the arrays of trust_bf16.npz, and the text of graph.xml, None to leave
        it as it is.
    """
    held_out = roles["calibrate"]
    count = len(np.unique(held_out.lesions))
    if not has_bfloat16():
        return _float32("not tried in bfloat16: this processor has no instructions that make it faster"), {}, None
    if count < MIN_LESIONS:
        return _float32(f"not tried in bfloat16: {count} held-out lesions, at least {MIN_LESIONS} are needed"), {}, None
    layers = len(heavy_layers(bundle.graph_path))
    with tempfile.TemporaryDirectory(prefix="dermlens-precision-") as place:
        twins = {n: _twin(bundle, Path(place, str(n)), n) for n in sorted({round(layers * share) for share in KEPT})}
        runtimes = [Runtime(one.graph_path, precision=one.precision) for one in (bundle, *twins.values())]
        (full, *lows), kept = all_logits(runtimes, bundle.input_spec, held_out.records, console)
        truth, lesions = held_out.y_true[kept], held_out.lesions[kept]
        gate: dict[str, Any] = {}
        for (n, twin), low in zip(twins.items(), lows, strict=True):
            own = bundle.calibration
            if bundle.calibrated:
                own = fit_calibration(
                    low,
                    truth,
                    lesions,
                    prior=own.prior,
                    training_prior=own.training_prior,
                    bias=any(own.bias),  # chosen in float32
                )
            found = compare(truth, lesions, (full, low), (bundle.calibration, own), bundle.decision_rule, seed=seed)
            gate = {"role": "calibrate", "layers": layers, "float32_layers": n, **found}
            if gate["passed"]:
                facts, arrays = fit_trust(
                    replace(twin, calibration=own),
                    Runtime(twin.graph_path, precision=twin.precision),
                    roles,
                    seed=seed,
                    console=console,
                )
                record = {"policy": BFLOAT16, "gate": gate, BFLOAT16: {"calibration": own.as_dict(), "trust": facts}}
                return record, arrays, twin.graph_path.read_text(encoding="utf-8")
    return {"policy": FLOAT32, "gate": gate}, {}, None


def _float32(reason: str) -> dict[str, Any]:
    return {"policy": FLOAT32, "gate": None, "reason": reason}


def _twin(bundle: Bundle, folder: Path, float32_layers: int) -> Bundle:
    """Return the bundle in bfloat16 but for its first layers, in a folder of its own."""
    folder.mkdir()
    for name in ("graph.bin", "head.npz"):
        shutil.copy(bundle.folder / name, folder / name)
    text = keeping_float32(bundle.graph_path, set(range(float32_layers)))
    (folder / "graph.xml").write_text(text, encoding="utf-8")
    return replace(bundle, folder=folder, precision=BFLOAT16)


def all_logits(
    runtimes: Sequence[Runtime], spec: InputSpec, records: Sequence[Record], console: Console
) -> tuple[list[npt.NDArray[np.float32]], Ints]:
    """Return the logits of each runtime, and which images could be read."""
    logits: list[list[np.ndarray]] = [[] for _ in runtimes]
    kept: list[int] = []

    with ThreadPoolExecutor(DECODE_THREADS) as pool, track("Precision", len(records), console) as advance:
        for start in range(0, len(records), BATCH):
            places, good = readable(records[start : start + BATCH], spec, pool)
            kept += [start + place for place in places]
            for runtime, rows in zip(runtimes, logits, strict=True):
                if good:
                    rows.append(runtime.run(np.stack(good)).logits)
            advance(min(BATCH, len(records) - start))
    return [np.concatenate(rows) for rows in logits], np.array(kept, np.int64)


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
    samples = [metrics.calibration_error(confidence, correct, bins, w) for w in (np.ones((1, len(truth))), *blocks)]
    return sampled_figure(np.concatenate(samples), reason="too few images")
