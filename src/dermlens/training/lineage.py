"""What the starting weights have already seen, so that a model made from them is not scored on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dermlens.errors import LeakageError
from dermlens.inference.bundle import Seen
from dermlens.training.material import Material
from dermlens.training.sources import WORDS, published_for

SeenByRole = Mapping[str, Mapping[str, list[str]]]
KINDS = ("content_hashes", "lesion_ids", "isic_ids")
LEARNED_FROM = "weights"  # the role in seen.json of all that the starting weights have met


def check_lineage(
    weights: str, material: Material, *, allow_leakage: bool, console: Console
) -> tuple[Material, dict[str, dict[str, list[str]]]]:
    """Refuse to select, calibrate or test on images that the starting weights have met; mark the run when allowed.

    Args:
        weights: a word (public weights) or the path of a weight file.

    Returns:
        The material, marked leaky where allowed, and the role to add to `seen.json` (none for public weights).

    Raises:
        LeakageError: held-out images were met, or nothing is recorded of a `.keras` file, and it is not allowed.
    """
    path = Path(weights)
    if weights in WORDS or published_for(path.name) is not None:
        return material, {}
    known = _seen_by(path)
    if known is None and path.suffix != ".keras":
        console.print(
            f"Nothing is recorded of what {weights} has been trained on. If it has met images of your test, the scores "
            "will be too good.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
        return material, {}
    if known is None:
        message = f"Nothing is recorded of what {weights} has been trained on (no readable seen.json beside it)."
        return _refuse_or_mark(message, material, allow_leakage, console), {}
    seen = Seen(*(frozenset(known[kind]) for kind in KINDS))
    overlap = [
        record.image
        for record, digest, role in zip(material.records, material.hashes, material.roles, strict=True)
        if role != "train" and seen.reason(digest, record.lesion_id, record.isic_id) is not None
    ]
    if overlap:
        message = f"{weights} has already met {len(overlap)} images of the held-out roles, first {overlap[0]}."
        material = _refuse_or_mark(message, material, allow_leakage, console)
    return material, {LEARNED_FROM: known}


def _seen_by(weights: Path) -> dict[str, list[str]] | None:
    """Return all that the run of a `.keras` file has met, in any role, from the `seen.json` beside it."""
    try:
        by_role: SeenByRole = json.loads((weights.parent / "seen.json").read_text(encoding="utf-8"))
        return {kind: sorted({item for role in by_role.values() for item in role.get(kind, ())}) for kind in KINDS}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _refuse_or_mark(message: str, material: Material, allow_leakage: bool, console: Console) -> Material:
    if not allow_leakage:
        raise LeakageError(
            message,
            remedy="Start from other weights, or pass --allow-leakage to train anyway with the mark 'leaky'.",
        )
    console.print(f"LEAKY: {message}", style="red", highlight=False)
    return replace(material, leaky=True)
