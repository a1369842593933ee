"""Tokens of a rendered text, and which of them begin or end at given places."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

FEW = 4  # places that are looked for one by one


def tokens_and_places(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    starts: Sequence[int],
    ends: Sequence[int],
    known: dict[str, list[int]],
) -> tuple[list[int], list[int], list[int]]:
    """(ids, the first token of each start, the token behind each end).

    A token that reaches over a place belongs to what begins or ends there. known: beginnings of texts and their tokens,
    which this remembers for the other answers to a prompt.
    """
    encoded = tokenizer(text, add_special_tokens=False)
    ids = list(encoded["input_ids"])
    if encoded.encodings:
        own = encoded.encodings[0]
        if len({*starts, *ends}) <= FEW:
            return (
                ids,
                [_beginning(own, text, place) for place in starts],
                [_behind(own, text, place) for place in ends],
            )
        offsets = own.offsets
        firsts, lasts = zip(*offsets, strict=True) if offsets else ((), ())
        return ids, [bisect_right(lasts, place) for place in starts], [bisect_left(firsts, place) for place in ends]
    found = _few(tokenizer, text, ids, {*starts, *ends}, known) or {}
    if found:
        return ids, [found[place] for place in starts], [found[place] for place in ends]
    pieces = _Pieces(tokenizer, text, ids)
    return ids, [pieces.before(place) for place in starts], [pieces.until(place) for place in ends]


def _beginning(encoding: Encoding, text: str, place: int) -> int:
    """The first token that ends after `place`; without a list of all offsets, which takes long to make."""
    found = next((token for at in range(place, len(text)) if (token := encoding.char_to_token(at)) is not None), None)
    return len(encoding) if found is None else found


def _behind(encoding: Encoding, text: str, place: int) -> int:
    """The first token that begins at `place` or after it."""
    found = _beginning(encoding, text, place)
    return found + 1 if found < len(encoding) and encoding.token_to_chars(found)[0] < place else found


def _few(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], places: set[int], known: dict[str, list[int]]
) -> dict[int, int] | None:
    """How many tokens stand before each of a few places; None where a token reaches over one, or there are many."""
    if len(places) > FEW:
        return None
    found = {}
    for place in places:
        if len(text) - place < FEW:  # what a template writes behind the end of a turn
            part = list(tokenizer(text[place:], add_special_tokens=False)["input_ids"]) if text[place:] else []
            if part == ids[len(ids) - len(part) :]:
                found[place] = len(ids) - len(part)
                continue
        part = known.get(text[:place])
        if part is None:
            part = list(tokenizer(text[:place], add_special_tokens=False)["input_ids"])
            if len(known) >= FEW:
                known.clear()
            known[text[:place]] = part
        if part != ids[: len(part)]:
            return None
        found[place] = len(part)
    return found


class _Pieces:
    """For tokenizers that do not tell where their tokens stand: the text is cut at its added tokens, and each part
    tokenised by itself up to a place."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> None:
        self._tokenizer, self._text, self._ids = tokenizer, text, ids
        names = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        parts = [part for part in re.split(f"({'|'.join(map(re.escape, names)) or '(?!)'})", text) if part]
        rows = [self._encode(part) for part in parts]
        if [index for row in rows for index in row] != ids:  # a part is written otherwise behind another one
            parts, rows = [text], [ids]
        self._parts, self._rows = parts, rows
        self._starts, self._counts = [0], [0]
        for part, row in zip(parts, rows, strict=True):
            self._starts.append(self._starts[-1] + len(part))
            self._counts.append(self._counts[-1] + len(row))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def before(self, place: int) -> int:
        """How many tokens end at or before `place`."""
        return self._count(place)[0]

    def until(self, place: int) -> int:
        """How many tokens begin before `place`."""
        count, is_whole = self._count(place)
        return count if is_whole else count + 1

    def _count(self, place: int) -> tuple[int, bool]:
        """(tokens that end at or before `place`, whether none reaches over it)."""
        number = bisect_right(self._starts, place) - 1
        if number >= len(self._parts) or self._starts[number] == place:
            return self._counts[min(number, len(self._parts))], True
        row, part = self._rows[number], self._encode(self._parts[number][: place - self._starts[number]])
        shared = 0
        while shared < min(len(part), len(row)) and part[shared] == row[shared]:
            shared += 1
        return self._counts[number] + shared, shared == len(part)
