"""The 95 % interval of a share that was counted, for audit and evaluation alike."""

from __future__ import annotations

import math

Z2 = 1.959964**2


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, 0 to 1, of n cases (Wilson 1927); good for few cases and for 0 and 1."""
    centre = (share + Z2 / (2 * n)) / (1 + Z2 / n)
    half = math.sqrt(Z2 * (share * (1 - share) / n + Z2 / (4 * n * n))) / (1 + Z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)
