"""What is looked for across pieces: texts that are equal or nearly so, and texts that two splits have.

Nearly equal: MinHash over 3-grams of characters (Broder 1997), cut into bands (locality-sensitive hashing; Leskovec,
Rajaraman, Ullman, Mining of Massive Datasets, chapter 3). Two texts with a share s of common 3-grams meet in a band
with probability 1 - (1 - s^ROWS)^BANDS: 0.99 at s = 0.8, 0.22 at 0.5, 0.01 at 0.3. Those that meet are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import rensa

from keju.data_prepare.corpus import Item
from keju.data_prepare.pipeline.hashing import bucket_of, hash64, mixed, remembered_hash64, text_hash
from keju.data_prepare.pipeline.rows import context_of, kept_apart, kind_of, reply_of

BANDS, ROWS = 16, 6
NGRAM = 3
MIN_GRAMS = 8  # of shorter texts a single other character is most of the difference: only equal ones are duplicates

# Items are known by one number: the place of their split in SPLITS in the upper 8 bits, then their number. The smallest
# of equal ones stays.
SPLIT_SHIFT = 56
NUMBER_MASK = (1 << SPLIT_SHIFT) - 1

# exact: a hash of the whole text, equal for equal texts, so that these need not be compared.
BAND = np.dtype([("hash", "<u8"), ("key", "<u8"), ("exact", "<u8")])
# text: which text of the item, in the order of `texts_of`.
TEXT = np.dtype([("hash", "<u8"), ("key", "<u8"), ("text", "<u4")])


def keys_of(entries: np.ndarray) -> np.ndarray:
    """entries: of ENTRY."""
    return entries["split"].astype(np.uint64) << np.uint64(SPLIT_SHIFT) | entries["number"]


def compared_text(item: Item) -> str:
    return f"{item.content or context_of(item.row)}\n{reply_of(item.row)}"


def similarity(text: str, other: str) -> float:
    """The share of common 3-grams: Jaccard's coefficient."""
    ours, theirs = _grams(text), _grams(other)
    return len(ours & theirs) / len(ours | theirs)


def _grams(text: str) -> set[str]:
    return {text[start : start + NGRAM] for start in range(max(1, len(text) - NGRAM + 1))}


def bands(items: Sequence[Item], keys: Sequence[int], *, near: bool) -> np.ndarray:
    """What items are recognised by, [n] of BAND: an entry for equal texts, and BANDS for similar ones if `near`."""
    texts = [compared_text(item) for item in items]
    kinds = [f"{kind_of(item.row)}/{item.task}" for item in items]
    exact = np.array([hash64(kind, text) for kind, text in zip(kinds, texts, strict=True)], np.uint64)
    numbers = np.array(keys, np.uint64)
    found = [_entries(exact, numbers, exact)]
    rows = [row for row, text in enumerate(texts) if near and len(text) >= MIN_GRAMS + NGRAM - 1]
    if rows:
        digests = _digests([texts[row] for row in rows])
        salts = np.array([remembered_hash64("band", kinds[row]) for row in rows], np.uint64)
        for band in range(BANDS):
            hashes = salts + np.uint64(band)
            for number in digests[:, band * ROWS : (band + 1) * ROWS].T:
                hashes = mixed(hashes, number)
            found.append(_entries(hashes, numbers[rows], exact[rows]))
    return np.concatenate(found)


def _digests(texts: Sequence[str]) -> np.ndarray:
    """MinHash of the 3-grams of texts, none shorter than one: [texts, BANDS * ROWS] of uint64."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    grams = mixed(codes[:-2] | codes[1:-1] << np.uint64(21) | codes[2:] << np.uint64(42), np.uint64(0))
    sizes = np.array([len(text) for text in texts])
    # The last two characters of a text begin none.
    begins_one = np.ones(len(codes), bool)
    ends = np.cumsum(sizes)
    begins_one[ends - 1] = begins_one[ends - 2] = False
    starts = np.concatenate([[0], np.cumsum(sizes - (NGRAM - 1))])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        grams[begins_one[:-2]], starts.astype(np.uint64), BANDS * ROWS, 1
    )
    numbers = itertools.chain.from_iterable(matrix.to_rows())
    return np.fromiter(numbers, np.uint64, len(texts) * BANDS * ROWS).reshape(len(texts), BANDS * ROWS)


def text_hashes(items: Sequence[Item], keys: Sequence[int]) -> np.ndarray:
    """The texts of items that no two splits may share, [n] of TEXT."""
    found = [
        (text_hash(text), key, number)
        for item, key in zip(items, keys, strict=True)
        for number, text in kept_apart(item.row)
    ]
    return np.array(found, TEXT)


def _entries(hashes: np.ndarray, keys: np.ndarray, exact: np.ndarray) -> np.ndarray:
    entries = np.empty(len(hashes), BAND)
    entries["hash"], entries["key"], entries["exact"] = hashes, keys, exact
    return entries


def by_bucket(entries: np.ndarray, num_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """(entries ordered by the bucket of their hash, where each bucket begins [num_buckets + 1])."""
    buckets = bucket_of(entries["hash"], num_buckets)
    order = np.argsort(buckets, kind="stable")
    begins = np.searchsorted(buckets[order], np.arange(num_buckets + 1, dtype=np.uint64))
    return entries[order], begins
