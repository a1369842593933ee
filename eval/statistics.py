"""How sure a measured share or mean is: 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959964


class Interval(NamedTuple):
    low: float
    high: float


def wilson_interval(correct: float, total: int, z: float = Z) -> Interval:
    """The interval of a share `correct / total` (Wilson 1927), 95% by default.

    Unlike p +- z sqrt(p (1 - p) / n) it stays within 0..1 and is not empty at 0 and 1. Ties make `correct` a fraction.
    """
    if total < 1:
        raise ValueError("nothing was scored: a share of 0 items has no value")
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(max(0.0, share * (1 - share) / total + z * z / (4 * total * total)))
    # At 0 and 1 rounding may carry an end past the share itself.
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def macro_interval(groups: Sequence[tuple[float, int]], z: float = Z) -> Interval:
    """The interval of the mean of shares, each given as (correct, total): groups weigh the same, whatever their size.

    Variances of the groups add up (stratified sampling). A group's own is that of the share (correct + 1) /
    (total + 2), so that a small group in which all or nothing was right does not count as certain.
    """
    mean = sum(correct / total for correct, total in groups) / len(groups)
    variance = 0.0
    for correct, total in groups:
        share = (correct + 1) / (total + 2)
        variance += share * (1 - share) / total
    half = z * math.sqrt(variance) / len(groups)
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def mean_interval(values: Sequence[float], z: float = Z) -> Interval:
    """The interval of the mean of scores of 0..1 that are no plain right or wrong (F1), by the normal approximation.

    Scores that are all equal do not make the mean certain: then it is that of a share.
    """
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    if not squares:
        return wilson_interval(sum(values), len(values), z)
    half = z * math.sqrt(squares / (len(values) - 1) / len(values))
    return Interval(max(0.0, mean - half), min(1.0, mean + half))
