"""In which precision a bundle is served: bfloat16 where its gate was passed and the processor has it, else float32.

A bundle's own calibration, sets and thresholds are those of the float32 graph. One that has passed the gate
(`dermlens.evaluation.precision_gate`) carries a second set, fitted on the outputs in bfloat16, under `precision.bf16`
and in `trust_bf16.npz`. So every machine answers by facts that were fitted at the precision it computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from dermlens.inference.machine import instructions

FLOAT32, BFLOAT16 = "f32", "bf16"
BFLOAT16_TRUST_FILE = "trust_bf16.npz"


def served(card: Mapping[str, Any], *, float32: bool = False) -> tuple[str, Mapping[str, Any]]:
    """Return the precision, and the card with the facts that belong to it.

    Args:
        float32: take float32 whatever the bundle and the processor allow.

    Raises:
        KeyError, TypeError, ValueError: the record makes no sense; a precision without a gate that was passed is one.
    """
    record = card["precision"]
    policy = record["policy"]
    if policy == FLOAT32:
        return FLOAT32, card
    if policy != BFLOAT16 or record["gate"]["passed"] is not True:
        raise ValueError(f"precision {policy!r} without a gate that was passed")
    own = {**card, **{name: record[BFLOAT16][name] for name in ("calibration", "trust")}}
    return (FLOAT32, card) if float32 or not has_bfloat16() else (BFLOAT16, own)


@cache
def has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 that make a network faster.

    Intel's AVX-512 BF16 without AMX, as a virtual machine may have it, takes a third longer than float32.
    """
    import openvino as ov

    core = ov.Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    if "Intel" not in core.get_property("CPU", "FULL_DEVICE_NAME"):
        return True
    return "AMX BF16" in (instructions() or ["AMX BF16"])


def told(record: Mapping[str, Any]) -> str | None:
    """Return what a bundle's record says of its gate in a few words, None where none was run."""
    gate = record.get("gate")
    if not gate:
        return record.get("reason")
    word = "passed" if gate["passed"] else f"failed ({'; '.join(gate['failed'])})"
    first = gate.get("float32_layers", 0)
    kept = f" with the first {first} of {gate['layers']} layers in float32" if first else ""
    return (
        f"gate for bfloat16{kept} {word}: decisions agree on {gate['agreement']:.2%} of {gate['images']} held-out "
        f"images, 99th percentile of the change in probability {gate['change_p99']:.3f}"
    )
