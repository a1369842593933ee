"""Rows that hold a piece of an evaluation set: found by runs of 13 characters (words, in English) that they share.

Why 13: it is GPT-3's choice for English words. Thirteen Chinese characters are about eight words, a clause; what is
shorter is often an idiom with its verb, or a title with a year, that any text may hold. Shorter questions, options and
answers cannot be found so; they are counted. A run that many different texts of the evaluation sets share (下列关于
...的说法正确的是) comes from how tasks are worded and is no evidence; the same text in several rows counts as one.

How many runs: one is enough for a text of up to 62 units, as most questions are. Of a longer one (the passages of CMRC
2018 are from Wikipedia) a row must share 2 % of all runs, for a common turn of phrase is soon found in a long text. And
at least 5 units must be other than the long names in `set_phrases.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keju.data_prepare.cleaning.evaluation_texts import evaluation_texts
from keju.data_prepare.cleaning.ngrams import SEPARATOR, count_units, ngram_hashes, runs_at
from keju.data_prepare.cleaning.set_phrases import without_set_phrases
from keju.data_prepare.cleaning.unicode_form import normal_form
from keju.errors import UserError
from keju.records.writing import whole_folder, write_json

LENGTH = 13
MAX_TEXTS = 10
MIN_SHARE = 0.02
MIN_OWN_UNITS = 5

_HASHES, _SOURCES, _SIZES, _FILTER, _DESCRIPTION = "hashes.npy", "sources.npy", "sizes.npy", "filter.npy", "ngrams.json"
_FILTER_BITS_PER_NGRAM = 32
_NONE = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True)
class NgramSummary:
    """What `write_evaluation_ngrams` read and wrote. digest: the same for the same n-grams, for a report."""

    folders: list[str]
    length: int
    max_texts: int
    texts: int
    texts_too_short: int
    ngrams: int
    ngrams_too_common: int
    digest: str


class Overlap(NamedTuple):
    """where: "file:row" of an evaluation set. run: the longest run of units that a text shares with it."""

    where: str
    run: str


def write_evaluation_ngrams(
    folders: Iterable[str | Path], output: str | Path, *, length: int = LENGTH, max_texts: int = MAX_TEXTS
) -> NgramSummary:
    """Read the evaluation sets in `folders` and write their n-grams to the folder `output`, for `EvaluationNgrams`.

    length: of a run, in Han characters or words. max_texts: a run in more different texts than this is left out.
    Raises UserError for a folder without evaluation sets, or with a file that cannot be read.
    """
    folders = [Path(folder) for folder in folders]
    places: list[str] = []
    hashes, sources = [], []
    seen: set[bytes] = set()
    too_short = 0
    for where, text in (found for folder in folders for found in evaluation_texts(folder)):
        found = _NONE if len(text) < length else ngram_hashes(normal_form(text).replace(SEPARATOR, " "), length)
        if not len(found):
            too_short += 1
            continue
        digest = hashlib.blake2b(found.tobytes(), digest_size=12).digest()
        if digest in seen:
            continue
        seen.add(digest)
        hashes.append(np.unique(found))
        sources.append(np.full(len(hashes[-1]), len(places), dtype=np.uint32))
        places.append(where)
    if not hashes:
        raise UserError(
            f"{folders[0]}: no text of {length} characters or words is in its files", option="decontaminate"
        )
    all_hashes, all_sources = np.concatenate(hashes), np.concatenate(sources)
    order = np.argsort(all_hashes, kind="stable")  # so that the first of equal ones is of the first text
    values, first, counts = np.unique(all_hashes[order], return_index=True, return_counts=True)
    kept = counts <= max_texts
    values, sources_kept = values[kept], all_sources[order][first[kept]]
    digest = hashlib.blake2b(values.tobytes() + bytes([length]), digest_size=16).hexdigest()
    summary = NgramSummary(
        [folder.resolve().name for folder in folders], length, max_texts, len(places), too_short,
        len(values), int(np.count_nonzero(~kept)), digest,
    )  # fmt: skip
    with whole_folder(output) as aside:
        np.save(aside / _HASHES, values)
        np.save(aside / _SOURCES, sources_kept)
        np.save(aside / _SIZES, np.array([len(found) for found in hashes]))
        np.save(aside / _FILTER, _filter_of(values))
        write_json(aside / _DESCRIPTION, {**asdict(summary), "places": places})
    return summary


class EvaluationNgrams:
    """The n-grams in a folder of `write_evaluation_ngrams`; processes on one machine share their memory.

    length: of a run. Raises UserError if the folder holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
            arrays = (np.load(folder / name, mmap_mode="r") for name in (_HASHES, _SOURCES, _SIZES, _FILTER))
            self._hashes, self._sources, self._sizes, self._filter = map(np.asarray, arrays)
            self.length, self._places = int(description["length"]), list(description["places"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: holds no n-grams of evaluation sets; write them anew") from error

    def overlap(self, texts: Sequence[str]) -> Overlap | None:
        """The evaluation text of which the texts hold enough runs; of several the one whose run is first."""
        texts = [text for text in texts if len(text) >= self.length]
        if not texts:
            return None
        joined = SEPARATOR.join(texts)
        hashes = ngram_hashes(joined, self.length)
        (maybe,) = np.nonzero(_passes(self._filter, hashes))
        if not len(maybe):
            return None
        found = hashes[maybe]
        places = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
        same = self._hashes[places] == found
        found, sources, starts = found[same], self._sources[places[same]], maybe[same]
        for source in dict.fromkeys(sources.tolist()):
            of_source = sources == source
            if len(np.unique(found[of_source])) < MIN_SHARE * self._sizes[source]:
                continue
            runs = runs_at(joined, starts[of_source].tolist(), self.length)
            if sum(count_units(without_set_phrases(run)) for run in runs) >= MIN_OWN_UNITS:
                return Overlap(self._places[source], max(runs, key=len))
        return None


def _filter_of(hashes: np.ndarray) -> np.ndarray:
    """uint8 [a power of two]: one bit for the upper bits of a hash. Most n-grams that are not there end here, with one
    look into a small array, where a search takes twenty into a large one."""
    bits = max(int(len(hashes) * _FILTER_BITS_PER_NGRAM).bit_length(), 10)
    there = np.zeros(1 << bits, dtype=bool)
    there[hashes >> np.uint64(64 - bits)] = True
    return np.packbits(there, bitorder="little")


def _passes(filter: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """bool [number of hashes]: False where a hash is not among those of the filter for sure."""
    bits = hashes >> np.uint64(64 - (len(filter) * 8).bit_length() + 1)
    return (filter[bits >> np.uint64(3)] >> (bits & np.uint64(7)).astype(np.uint8)) & 1 > 0
