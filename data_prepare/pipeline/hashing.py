"""Numbers drawn from texts and from other numbers: the same in every process, and on every machine."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

REMEMBERED = 1 << 13  # texts and groups that come again soon: of one poem, of one question
REMEMBERED_CHARS = 1000  # of the longest text that is remembered


def hash64(*parts: object) -> int:
    """A number of 64 bits that depends on all parts and their order."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


remembered_hash64 = functools.lru_cache(REMEMBERED)(hash64)


def text_hash(text: str) -> int:
    return (remembered_hash64 if len(text) <= REMEMBERED_CHARS else hash64)("text", text)


def fraction(*parts: object) -> float:
    """A number in [0, 1), evenly distributed over different parts."""
    return remembered_hash64(*parts) / 2**64


def mixed(hashes: np.ndarray | np.uint64, numbers: np.ndarray | np.uint64) -> np.ndarray:
    """One more number into hashes, of 64 bits each: the finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        mixed = (hashes ^ numbers) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def bucket_of(hashes: np.ndarray, num_buckets: int) -> np.ndarray:
    """From 0 to num_buckets - 1, by the upper half of each hash: numbers drawn with a modulus do not follow it."""
    return ((hashes >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)
