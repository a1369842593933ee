"""Tokens of a rendered text, and which of them begin or end at given places."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def tokens_and_places(
    tokenizer: PreTrainedTokenizerBase, text: str, starts: Sequence[int], ends: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """(ids, the first token of each start, the token behind each end).

    A token that reaches over a place belongs to what begins or ends there.
    """
    encoded = tokenizer(text, add_special_tokens=False)
    ids = list(encoded["input_ids"])
    if encoded.encodings:
        offsets = encoded.encodings[0].offsets
        firsts, lasts = [first for first, _ in offsets], [last for _, last in offsets]
        return ids, [bisect_right(lasts, place) for place in starts], [bisect_left(firsts, place) for place in ends]
    pieces = _Pieces(tokenizer, text, ids)
    return ids, [pieces.before(place) for place in starts], [pieces.until(place) for place in ends]


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
