"""Runs of n characters or words of a text as 64-bit numbers, for millions of texts.

A unit is a Han character, or a whole word of other letters or digits, in lower case; spaces, punctuation and symbols
are left out, so that 13 units are 13 characters of Chinese and 13 words of English, whatever stands between them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import numpy as np

SEPARATOR = "\0"  # between texts in one string: no run goes across it, and no text has it
_HAN = ((0x3007, 0x3008), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))
_RANGES = "".join(f"{chr(start)}-{chr(end - 1)}" for start, end in _HAN)
_UNIT = re.compile(rf"[\0{_RANGES}]|[^\W_{_RANGES}]+")
_SPACE_BESIDE_HAN = re.compile(rf" (?=[{_RANGES}])|(?<=[{_RANGES}]) ")
_OTHER, _ALONE, _IN_WORD = 0, 1, 2
_CODES = 0x110000


def ngram_hashes(text: str, length: int) -> np.ndarray:
    """uint64 [max(number of units - length + 1, 0)]: of each run of `length` units, in the order of the text."""
    codes = np.frombuffer(text.lower().encode("utf-32-le", "replace"), dtype=np.uint32)
    kinds = _kinds()[codes]
    begins = kinds != _OTHER
    begins[1:] &= (kinds[1:] != _IN_WORD) | (kinds[:-1] != _IN_WORD)
    kept = kinds != _OTHER
    codes, (starts,) = codes[kept], np.nonzero(begins[kept])
    count = len(starts) - length + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    units = _mixed(codes.astype(np.uint64))
    if len(starts) < len(codes):
        place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
        units = _mixed(np.add.reduceat(units * _powers()[np.minimum(place, 63)], starts))
    else:
        units = _mixed(units)
    hashes = units[:count].copy()
    for offset in range(1, length):
        # Horner's rule: the hash of the first `offset` units, times an odd number, plus the next unit.
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += units[offset : offset + count]
    return _mixed(hashes)


def runs_at(text: str, starts: Iterable[int], length: int) -> list[str]:
    """The units of a text that its n-grams at `starts` cover, those that follow one another as one string.

    starts: places in what `ngram_hashes` returns, ascending.
    """
    units = _UNIT.findall(text.lower())
    covered: list[list[int]] = []
    for start in starts:
        if covered and start <= covered[-1][1]:
            covered[-1][1] = start + length
        else:
            covered.append([start, start + length])
    return [_SPACE_BESIDE_HAN.sub("", " ".join(units[start:end])) for start, end in covered]


def count_units(text: str) -> int:
    return len(_UNIT.findall(text))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of a number decides about every bit of the result."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


@functools.cache
def _kinds() -> np.ndarray:
    """uint8 [number of code points]: the kind of each."""
    kinds = np.zeros(_CODES, dtype=np.uint8)
    kinds[:0x20000] = [_IN_WORD if chr(code).isalnum() else _OTHER for code in range(0x20000)]
    for start, end in _HAN:
        kinds[start:end] = _ALONE
    kinds[ord(SEPARATOR)] = _ALONE
    return kinds


@functools.cache
def _powers() -> np.ndarray:
    """uint64 [64]: powers of an odd number, one for each place in a word; 1 for the first."""
    return np.cumprod(np.array([1] + 63 * [0xD1342543DE82EF95], dtype=np.uint64))
