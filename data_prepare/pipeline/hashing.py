"""Numbers drawn from texts: the same in every process, and on every machine."""

from __future__ import annotations

import hashlib


def hash64(*parts: object) -> int:
    """A number of 64 bits that depends on all parts and their order."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def fraction(*parts: object) -> float:
    """A number in [0, 1), evenly distributed over different parts."""
    return hash64(*parts) / 2**64
