"""Images that can hardly be read: nothing on them, out of focus, too dark, overexposed, of extreme size or shape.

The limits are wide on purpose: a photograph of a lesion that a person would use should pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from dermlens.audit.facts import ImageFacts
from dermlens.audit.findings import Finding
from dermlens.data.records import Record

MIN_CONTRAST = 4.0
MIN_SHARPNESS = 0.3  # 1 in 1000 dermoscopic pictures is below; of those blurred by 4 pixels of 224, 9 in 10
MIN_BRIGHTNESS = 50.0
MAX_DARK_SHARE = 0.6
MAX_BRIGHT_SHARE = 0.25
MIN_SIDE_PX = 64
MAX_ASPECT = 2.5

_REMEDY = "Look at it; take it out, or use another picture of the lesion."


def quality_findings(records: Sequence[Record], facts: Sequence[ImageFacts]) -> list[Finding]:
    """Return a warning for each image and each thing that makes it hard to read; unreadable ones are told elsewhere."""
    return [
        Finding(kind, "warning", (record.image,), evidence, _REMEDY, (record.diagnosis,), (record.split or "",))
        for record, fact in zip(records, facts, strict=True)
        for kind, evidence in faults(fact)
    ]


def faults(fact: ImageFacts) -> list[tuple[str, str]]:
    """Return (kind, evidence) for everything that is wrong with one image."""
    look = fact.look
    if look is None:
        return []
    found = []
    if look.contrast < MIN_CONTRAST:
        found.append(("near_uniform", f"It is nearly one colour: grey varies by {look.contrast:.1f} of 255."))
    elif look.sharpness < MIN_SHARPNESS:
        evidence = f"It has hardly any detail: sharpness {look.sharpness:.2f}, at least {MIN_SHARPNESS} is usual."
        found.append(("blurred", evidence))
    if look.brightness < MIN_BRIGHTNESS or look.dark_share > MAX_DARK_SHARE:
        share = f"{look.dark_share * 100:.0f} % of it is nearly black"
        found.append(("dark", f"{share}; its mean grey is {look.brightness:.0f} of 255."))
    if look.bright_share > MAX_BRIGHT_SHARE:
        found.append(("overexposed", f"{look.bright_share * 100:.0f} % of it is white."))
    width, height = fact.width_px, fact.height_px
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_ASPECT * min(width, height):
        found.append(("extreme_shape", f"It has {width} x {height} pixels."))
    return found
