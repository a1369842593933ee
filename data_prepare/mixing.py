"""How often each source occurs in a mixture: `--mix alpaca.json:2 --mix belle/:0.5`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from keju.data_prepare.pipeline.hashing import fraction
from keju.errors import UserError

MAX_WEIGHT = 1000


def parse_mix(entries: Sequence[str], sources: Iterable[str]) -> dict[str, float]:
    """The weight of every source, 1 for those that no entry names.

    entries: "name:weight". A name is a source as it is ("sft/belle.json"), a file name alone where only one source has
        it ("belle.json"), or a folder ("sft/").
    sources: the files of the raw data, relative to its folder.
    Raises UserError for a name that is unknown, ambiguous or given twice, and a weight that is no positive number.
    """
    sources = sorted(set(sources))
    weights: dict[str, float] = {}
    for entry in entries:
        name, colon, text = entry.rpartition(":")
        if not colon or not name:
            raise UserError(f"{entry}: expected a name and a weight, such as belle.json:0.5", option="mix")
        weight = _weight(entry, text)
        for source in _named(entry, name, sources):
            if source in weights:
                raise UserError(f"{entry}: {source} has a weight already", option="mix")
            weights[source] = weight
    return {source: weights.get(source, 1.0) for source in sources}


def copies(weight: float, key: str, seed: int) -> int:
    """How many times an item occurs: floor(weight), and once more for a share of the items that is the rest.

    key: what items that are drawn together share, such as their group. The share is drawn by a hash of seed and key,
    the same in every process and for every order of the items; a smaller weight draws a subset.
    Held-out items are counted once or not at all: min(copies(...), 1).
    """
    whole = math.floor(weight)
    return whole + (fraction("mix", seed, key) < weight - whole)


def _weight(entry: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= MAX_WEIGHT:
        raise UserError(
            f"{entry}: the weight must be a number above 0, at most {MAX_WEIGHT}, not {text!r}", option="mix"
        )
    return weight


def _named(entry: str, name: str, sources: Sequence[str]) -> list[str]:
    name = name.removeprefix("./")
    if name in sources:
        return [name]
    inside = [source for source in sources if source.startswith(name.rstrip("/") + "/")]
    if inside:
        return inside
    same = [source for source in sources if source.rpartition("/")[2] == name]
    if len(same) > 1:
        raise UserError(f"{entry}: {name} may be {' or '.join(same[:4])}; write which", option="mix")
    if not same:
        shown = ", ".join(sources[:8]) + (", ..." if len(sources) > 8 else "")
        raise UserError(f"{entry}: no source {name!r}; there are {shown or 'none'}", option="mix")
    return same
