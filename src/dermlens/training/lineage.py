"""What the starting weights have already seen, so that a model made from them is not scored on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dermlens.errors import LeakageError
from dermlens.inference.bundle import HASH_CHARS, Seen
from dermlens.training.material import Material

SeenByRole = Mapping[str, Mapping[str, list[str]]]
LEARNED_FROM = "weights"  # the role in seen.json of all that the starting weights have met


def seen_by_weights(weights: str) -> dict[str, list[str]] | None:
    """Return what the weights file of an earlier dermlens run has met in any role, or None when nothing is recorded.

    Args:
        weights: the recipe's word or path; a run's `model.keras` has its `bundle/seen.json` beside it.
    """
    path = Path(weights).parent / "bundle" / "seen.json"
    if not Path(weights).is_file() or not path.is_file():
        return None
    by_role: SeenByRole = json.loads(path.read_text(encoding="utf-8"))
    kinds = ("content_hashes", "lesion_ids", "isic_ids")
    return {kind: sorted({item for role in by_role.values() for item in role.get(kind, ())}) for kind in kinds}


def check_overlap(
    material: Material, known: Mapping[str, list[str]], *, allow_leakage: bool, console: Console
) -> Material:
    """Refuse to select, calibrate or test on images that the starting weights have met; mark the run when allowed.

    Raises:
        LeakageError: there are such images and `allow_leakage` is False.
    """
    seen = Seen(*(frozenset(known[kind]) for kind in ("content_hashes", "lesion_ids", "isic_ids")))
    overlap = [
        record.image
        for record, digest, role in zip(material.records, material.hashes, material.roles, strict=True)
        if role != "train" and seen.reason(digest[:HASH_CHARS], record.lesion_id, record.isic_id) is not None
    ]
    if not overlap:
        return material
    message = f"The starting weights have already met {len(overlap)} images of the held-out roles, first {overlap[0]}."
    if not allow_leakage:
        raise LeakageError(
            message,
            remedy="Start from other weights, or pass --allow-leakage to train anyway with the mark 'leaky'.",
        )
    console.print(f"LEAKY: {message}", style="red", highlight=False)
    return replace(material, leaky=True)
