"""What numbers a setting takes: a part of its type, as in `max_length: PositiveInt = field(...)`.

Flags and YAML values are checked as they are read (see keju.training.arguments), and `--help` says the range. NaN and
infinity are in no range.
"""

from __future__ import annotations

import argparse
import functools
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """low and high: the bounds, which belong to the range unless they are `open`; apart: numbers outside of it that
    mean something of their own."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    apart: tuple[float, ...] = ()

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return (above and below and math.isfinite(number)) or number in self.apart

    def __str__(self) -> str:
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.open_low else 'at least'} {self.low:.10g}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.open_high else 'at most'} {self.high:.10g}")
        text = " and ".join(bounds) or "finite"
        return ", or ".join([text, *(f"{number:.10g}" for number in self.apart)])


def at_least(low: float, *, apart: tuple[float, ...] = ()) -> Range:
    return Range(low, apart=apart)


def above(low: float, *, apart: tuple[float, ...] = ()) -> Range:
    return Range(low, open_low=True, apart=apart)


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Range:
    return Range(low, high, open_low, open_high)


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, above(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
FiniteFloat = Annotated[float, Range()]
Share = Annotated[float, between(0, 1)]
# A share that is never all.
Fraction = Annotated[float, between(0, 1, open_high=True)]
PositiveShare = Annotated[float, between(0, 1, open_low=True)]
LabelSmoothing = Annotated[float, between(0, 0.5, open_high=True)]  # chance that a label is wrong
StepLimit = Annotated[int, at_least(1, apart=(-1,))]  # -1: none
# What numpy takes.
Seed = Annotated[int, between(0, 2**32 - 1)]


class OutOfRange(argparse.ArgumentTypeError):
    """A number that a setting does not take."""


def range_of(hint: Any) -> Range | None:
    """That of a type, also where it stands in a list or beside None."""
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Range)), None)
    if get_origin(hint) in (Union, types.UnionType, list):
        return next((found for part in get_args(hint) if (found := range_of(part)) is not None), None)
    return None


def ranged(convert: Callable[[str], float], allowed: Range) -> Callable[[str], float]:
    """`convert`, which raises OutOfRange for a number that is not `allowed`."""

    @functools.wraps(convert, updated=())
    def checked(text: str) -> float:
        number = convert(text)
        if number not in allowed:
            raise OutOfRange(f"must be {allowed}, got {text.strip()}")
        return number

    return checked
