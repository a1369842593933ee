"""How sure a measured share is."""

from __future__ import annotations

import math
from typing import NamedTuple


class Interval(NamedTuple):
    low: float
    high: float


def wilson_interval(correct: float, total: int, z: float = 1.959964) -> Interval:
    """The interval of a share `correct / total` (Wilson 1927), 95% by default.

    Unlike p +- z sqrt(p (1 - p) / n) it stays within 0..1 and is not empty at 0 and 1. Ties make `correct` a fraction.
    """
    if total < 1:
        raise ValueError("nothing was scored: a share of 0 items has no value")
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(max(0.0, share * (1 - share) / total + z * z / (4 * total * total)))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))
