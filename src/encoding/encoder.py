"""Records to token trees: what the model reads, and which tokens it is trained on.

A tokenizer with a chat template renders conversations through it. One without (a base model's) reads

    [bos] system, blank line, prompt, newline | answer [eos]

The prompt is tokenised once, by itself; an answer is what follows it when both are tokenised together, so that its
first token is the one that a model would generate there ("A", " A" and "▁A" differ). Only answers and their end are
trained.

For prefix language models (GLM, ChatGLM-6B) whatever stands before generated text is its context, with a mask token and
a start token at the end (PrefixTokenizer.opening_ids); what is generated is tokenised by itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from keju.records.record import ChatRecord, Message, RankedRecord, Record, TextRecord
from keju.tokenizers.family import PrefixTokenizer, answer_end_id
from keju.trees.segment import Segment


class TooLong(ValueError):
    """A record that does not fit the maximum length."""


class Encoder:
    """max_length: tokens from the root to the end of an answer. on_long: what happens to longer ones:

    - "skip" and "error" raise TooLong (whoever loops over records skips and counts, or stops);
    - "truncate" keeps the end of a prompt and the beginning of an answer, which then has no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, on_long: str = "skip") -> None:
        if on_long not in ("skip", "error", "truncate"):
            raise ValueError(f"--on_long {on_long}: choose from skip, error, truncate")
        if max_length < 2:
            raise ValueError(f"--max_length {max_length}: at least 2")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.on_long = on_long
        self.uses_template = bool(getattr(tokenizer, "chat_template", None))
        self.end = answer_end_id(tokenizer)
        self.is_prefix = isinstance(tokenizer, PrefixTokenizer)
        self.special_ids = set(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    # -- text ------------------------------------------------------------------------------------------------------

    def text_trees(self, record: TextRecord) -> list[Segment]:
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
            raise ValueError(f"--max_length {self.max_length}: no room for a token beside the special ones")
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

    # -- prompts and answers -----------------------------------------------------------------------------------------

    def prompt_ids(self, messages: Sequence[Message], prefix: str = "") -> list[int]:
        """What stands before the answer: conversation, the template's opening of the answer, the given `prefix`."""
        if not self.uses_template and not _has_answers(messages):
            return self.prefix_ids(_plain_prompt(messages) + prefix)
        if self.uses_template:
            ids = self._render(messages, add_generation_prompt=True)
        else:
            ids = self._conversation_ids(messages)
        return ids + self.tokenizer.encode(prefix, add_special_tokens=False) if prefix else ids

    def answer_ids(
        self, messages: Sequence[Message], answer: str, prefix: str = "", prompt: list[int] | None = None
    ) -> list[int]:
        """The answer's tokens and the token that ends it. `prompt`: its `prompt_ids`, where they are known already."""
        prompt = self.prompt_ids(messages, prefix) if prompt is None else prompt
        if not self.uses_template and _has_answers(messages):
            return [*self.tokenizer.encode(answer, add_special_tokens=False), self.end]
        if not self.uses_template:
            return self.continuation_ids(_plain_prompt(messages) + prefix, answer, prompt) + [self.end]
        whole = self._render([*messages, Message("assistant", prefix + answer)])
        if whole[: len(prompt)] == prompt:
            ids = _trim_after_end(whole[len(prompt) :], self.special_ids)
            return ids if ids and ids[-1] in self.special_ids else [*ids, self.end]
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.end]

    def answers_ids(
        self, messages: Sequence[Message], answers: Sequence[str], prefix: str, prompt: list[int]
    ) -> list[list[int]]:
        """`answer_ids` of each of several answers to one prompt; without a template they are tokenised at once."""
        if self.uses_template or _has_answers(messages):
            return [self.answer_ids(messages, answer, prefix, prompt) for answer in answers]
        return [[*ids, self.end] for ids in self.continuations_ids(_plain_prompt(messages) + prefix, answers, prompt)]

    def ranked_tree(self, record: RankedRecord, *, best_only: bool = False) -> Segment:
        """Prompt as root, answers as branches with their `score`. `best_only`: the best answer alone, for SFT."""
        prompt = self.prompt_ids(record.messages, record.prefix)
        answers = [record.best] if best_only else record.answers
        encoded = self.answers_ids(record.messages, [answer.text for answer in answers], record.prefix, prompt)
        prompt, encoded = self._fit(prompt, encoded, record.where)
        branches = [
            Segment(ids, trained=True, values={"score": float(answer.score)})
            for ids, answer in zip(encoded, answers, strict=True)
        ]
        return Segment(prompt, branches=branches)

    @staticmethod
    def prompt_of(record: Record) -> tuple[Sequence[Message], str]:
        """Messages and given prefix that an answer follows: of ranked answers, a chat's last answer, or a bare text."""
        if isinstance(record, RankedRecord):
            return record.messages, record.prefix
        if isinstance(record, ChatRecord):
            return record.prompt, ""
        return [Message("user", record.text)], ""

    def prompt_tree(self, record: Record) -> Segment:
        """The prompt alone, for generation."""
        ids = self.prompt_ids(*self.prompt_of(record))
        prompt, _ = self._fit(ids, [], record.where)
        return Segment(prompt)

    def chat_trees(self, record: ChatRecord) -> list[Segment]:
        """A conversation as one segment in which each assistant turn and its end are trained; or, where the format
        writes earlier turns differently once more turns follow, as one tree for each assistant turn."""
        turns = [number for number, message in enumerate(record.messages) if message.role == "assistant"]
        if not turns:
            raise ValueError(f"{record.where}: a conversation without an assistant turn trains nothing")
        ids: list[int] = []
        trained: list[bool] = []
        for number in turns:
            before = record.messages[:number]
            prompt = self.prompt_ids(before)
            if prompt[: len(ids)] != ids or (ids and self.is_prefix):
                return [self._turn_tree(record, turn) for turn in turns]
            answer = self.answer_ids(before, record.messages[number].content, prompt=prompt)
            ids = [*prompt, *answer]
            trained += [False] * (len(prompt) - len(trained)) + [True] * len(answer)
        if len(ids) > self.max_length:
            self._too_long(len(ids), record.where)
            ids, trained = ids[: self.max_length], trained[: self.max_length]
            if not any(trained):
                raise TooLong(f"{record.where}: no assistant turn begins within --max_length {self.max_length}")
        return [Segment(ids, trained=trained)]

    def _turn_tree(self, record: ChatRecord, turn: int) -> Segment:
        before = record.messages[:turn]
        prompt = self.prompt_ids(before)
        answer = self.answer_ids(before, record.messages[turn].content, prompt=prompt)
        prompt, (answer,) = self._fit(prompt, [answer], record.where)
        return Segment(prompt, branches=[Segment(answer, trained=True)])

    def sft_trees(self, record: RankedRecord | ChatRecord) -> list[Segment]:
        if isinstance(record, ChatRecord):
            return self.chat_trees(record)
        return [self.ranked_tree(record, best_only=True)]

    # -- details -----------------------------------------------------------------------------------------------------

    def _conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        """A conversation without a chat template, up to where the next answer begins."""
        last = max((number for number, message in enumerate(messages) if message.role == "assistant"), default=-1)
        if last < 0:
            return self._opening_ids(messages, first=True)
        # One step back at a time: each earlier turn is rendered once.
        prompt = self.prompt_ids(messages[:last])
        answer = self.answer_ids(messages[:last], messages[last].content, prompt=prompt)
        return prompt + answer + self._opening_ids(messages[last + 1 :], first=False)

    def _opening_ids(self, messages: Sequence[Message], *, first: bool) -> list[int]:
        text = _plain_prompt(messages)
        return self.prefix_ids(text) if first else self.tokenizer.encode(text, add_special_tokens=False)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        return self.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=False,
        )

    def _fit(self, prompt: list[int], answers: list[list[int]], where: str) -> tuple[list[int], list[list[int]]]:
        longest = len(prompt) + max(map(len, answers), default=0)
        if longest <= self.max_length:
            return prompt, answers
        self._too_long(longest, where)
        # At least half of the length stays for the answers; a first-token (bos) stays in front of what is left.
        room = self.max_length - min(max(map(len, answers), default=0), self.max_length // 2)
        if len(prompt) > room:
            head = prompt[:1] if prompt[0] in self.special_ids else []
            prompt = head + prompt[len(prompt) - (room - len(head)) :]
        return prompt, [ids[: self.max_length - len(prompt)] for ids in answers]

    def _too_long(self, length: int, where: str) -> None:
        if self.on_long != "truncate":
            raise TooLong(f"{where}: {length} tokens, more than --max_length {self.max_length}")


def _has_answers(messages: Sequence[Message]) -> bool:
    return any(message.role == "assistant" for message in messages)


def _plain_prompt(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.content for message in messages) + "\n"


def _trim_after_end(ids: list[int], special_ids: set[int]) -> list[int]:
    """Drops what a template writes after the token that ends an answer (ChatML: a newline)."""
    for position in range(len(ids) - 1, max(len(ids) - 4, -1), -1):
        if ids[position] in special_ids:
            return ids[: position + 1]
    return ids
