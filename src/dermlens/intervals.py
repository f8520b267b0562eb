"""The interval of a share that was counted: one formula for the audit and the evaluation."""

from __future__ import annotations

import math

Z_95 = 1.959964


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n cases (Wilson 1927); good for few cases and for 0 and 1.

    Args:
        share: 0 to 1; n: at least 1.
    """
    z2 = Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def wilson_width(share: float, n: int) -> float:
    """Return the width of that interval; 1 where there are no cases."""
    if n == 0:
        return 1.0
    low, high = wilson_interval(share, n)
    return high - low
