"""Texts to tokens: documents that are learned whole, and what follows a text.

A text is tokenised once, by itself; what continues it is what follows it when both are tokenised together, so that its
first token is the one that a model would generate there ("A", " A" and "▁A" differ).

For prefix language models (GLM, ChatGLM-6B) whatever stands before generated text is its context, with a mask token and
a start token at the end (PrefixTokenizer.opening_ids); what is generated is tokenised by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from keju.encoding.refusals import TooLong, placed
from keju.errors import UserError
from keju.records.record import TextRecord
from keju.tokenizers.family import PrefixTokenizer, answer_end_id
from keju.trees.segment import Segment

UNLIMITED = 10**9  # tokens: nothing is too long


class TextEncoder:
    """max_length: tokens from the root to the end of an answer. on_long: what happens to longer ones:

    - "skip" and "error" raise TooLong (whoever loops over records skips and counts, or stops);
    - "truncate" keeps the end of a prompt and the beginning of an answer, which then has no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, on_long: str = "skip") -> None:
        if on_long not in ("skip", "error", "truncate"):
            raise UserError(f"{on_long}: choose from skip, error, truncate", option="on_long")
        if max_length < 2:
            raise UserError(f"must be at least 2, got {max_length}", option="max_length")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.on_long = on_long
        self.end = answer_end_id(tokenizer)
        self.is_prefix = isinstance(tokenizer, PrefixTokenizer)
        self.special_ids = set(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    def text_trees(self, record: TextRecord) -> list[Segment]:
        """`_text_trees`, with the place of what goes wrong."""
        with placed(record):
            return self._text_trees(record)

    def _text_trees(self, record: TextRecord) -> list[Segment]:
        """A document, cut into pieces of at most max_length tokens; all of it is trained but the very first token.

        For a prefix language model a label is what is generated for the rest of its record. Without one the beginning
        of each piece, at most half of it, is the context of what follows, and is not trained: the document-level
        objective of GLM (arXiv 2103.10360, section 2.1.1).
        """
        if self.is_prefix and record.label:
            context = self.prefix_ids(record.text.removesuffix(record.label))
            answer = [*self.tokenizer.encode(record.label, add_special_tokens=False), self.end]
            context, (answer,) = self._fit(context, [answer], record.where)
            return [Segment(context, branches=[Segment(answer, trained=True)])]
        if self.is_prefix:
            return self._prefix_pieces(record.text)
        ids = list(self.tokenizer.encode(record.text))
        if ids[-1:] != [self.end]:
            ids.append(self.end)
        # Pieces overlap by one token, so that the first token of each is predicted too (by the last one before it).
        step = self.max_length - 1
        return [Segment(ids[start : start + self.max_length], trained=True) for start in range(0, len(ids) - 1, step)]

    def _prefix_pieces(self, text: str) -> list[Segment]:
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.end]
        room = self.max_length - len(self.tokenizer.opening_ids([]))
        if room < 1:
            raise UserError(
                f"{self.max_length} leaves no room for a token beside the special ones", option="max_length"
            )
        draw = random.Random(text)  # the same context in every epoch and every run
        pieces = []
        for start in range(0, len(ids), room):
            piece = ids[start : start + room]
            cut = draw.randint(0, len(piece) // 2)
            opening = self.tokenizer.opening_ids(piece[:cut])
            learned = piece[cut:]
            pieces.append(Segment([*opening, *learned], trained=[False] * len(opening) + [True] * len(learned)))
        return pieces

    def prefix_ids(self, text: str) -> list[int]:
        """A plain text as the beginning of a row (with the first-token that the tokenizer puts there), no end token."""
        return self.prefixes_ids([text])[0]

    def prefixes_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`prefix_ids` of several texts at once, which tokenizers do faster than one by one."""
        if self.is_prefix:
            return [self.tokenizer.opening_ids(ids) for ids in self._pieces(texts)]
        rows = self.tokenizer(list(texts))["input_ids"]
        return [ids[:-1] if ids[-1:] == [self.end] else ids for ids in map(list, rows)]

    def continuation_ids(self, text: str, continuation: str, prefix: Sequence[int] | None = None) -> list[int]:
        """The tokens of `continuation` as they follow `text` (whose own tokens are `prefix`)."""
        prefix = self.prefix_ids(text) if prefix is None else prefix
        return self.continuations_ids(text, [continuation], prefix)[0]

    def continuations_ids(self, text: str, continuations: Sequence[str], prefix: Sequence[int]) -> list[list[int]]:
        """`continuation_ids` of each of several texts that may follow."""
        if self.is_prefix:
            return self._pieces(continuations)
        prefix = list(prefix)
        rows = self.prefixes_ids([text + continuation for continuation in continuations])
        # Where the tokenizer merges across the boundary, a model that generates cannot: the continuation stands alone.
        return [
            together[len(prefix) :] if together[: len(prefix)] == prefix else self._pieces([continuation])[0]
            for together, continuation in zip(rows, continuations, strict=True)
        ]

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts without special tokens."""
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def blank_ids(self, before: str, after: str) -> list[int]:
        """What a prefix language model reads to fill in the blank between two texts: its mask token stands there."""
        before_ids, after_ids = self._pieces([before, after])
        return self.tokenizer.opening_ids([*before_ids, self.tokenizer.mask_token_id, *after_ids])

    def _fit(self, prompt: list[int], answers: list[list[int]], where: str) -> tuple[list[int], list[list[int]]]:
        longest = len(prompt) + max(map(len, answers), default=0)
        if longest <= self.max_length:
            return prompt, answers
        self._too_long(longest, where)
        # At least half of the length stays for the answers.
        room = self.max_length - min(max(map(len, answers), default=0), self.max_length // 2)
        prompt = self.end_of(prompt, room)
        return prompt, [ids[: self.max_length - len(prompt)] for ids in answers]

    def end_of(self, prompt: list[int], room: int) -> list[int]:
        """The last `room` tokens of a prompt, but for a first-token (bos), which stays in front of them."""
        if len(prompt) <= room:
            return prompt
        head = prompt[:1] if prompt[0] in self.special_ids else []
        return head + prompt[len(prompt) - (room - len(head)) :]

    def _too_long(self, length: int, where: str) -> None:
        if self.on_long != "truncate":
            raise TooLong(f"{where}: {length} tokens, more than --max_length {self.max_length}")
