"""Records to token trees: what the model reads, and which tokens it is trained on.

A tokenizer with a chat template renders conversations through it, and its answers are found in the rendered whole (see
keju.encoding.chat_template). One without (a base model's) reads

    [bos] system, blank line, prompt, newline | answer [eos]

Only answers and their end are trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from keju.encoding.chat_settings import ChatSettings
from keju.encoding.chat_template import ChatTemplate, Turn
from keju.encoding.refusals import TooLong, Unencodable, placed
from keju.encoding.text_encoder import TextEncoder
from keju.encoding.text_tokens import tokens_and_places
from keju.errors import UserError
from keju.records.record import Answer, ChatRecord, Message, RankedRecord, Record, TextRecord
from keju.tokenizers.family import renders_ids
from keju.trees.segment import Segment

CHARACTERS_A_TOKEN = 64  # of a text that is cut before it is tokenised; few texts have so many


class Span(NamedTuple):
    """An assistant turn among the tokens of a conversation: what is trained of it, and where its answer begins."""

    number: int
    start: int
    answer: int
    end: int


class Answered(NamedTuple):
    """Tokens of an answer; the first `given` of them are given, and not trained."""

    ids: list[int]
    given: int = 0


class Encoder(TextEncoder):
    """Records of all kinds to trees; see TextEncoder for max_length and on_long.

    chats: how conversations are rendered, and which of their turns are trained.

    What takes a record raises Unencodable "file:line: why" for one that cannot be encoded.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        on_long: str = "skip",
        chats: ChatSettings | None = None,
    ) -> None:
        super().__init__(tokenizer, max_length, on_long=on_long)
        self.chats = chats or ChatSettings()
        self._known: dict[str, list[int]] = {}
        self.template = None
        if getattr(tokenizer, "chat_template", None):
            names = list(map(str, tokenizer.convert_ids_to_tokens(sorted(self.special_ids))))
            self.template = ChatTemplate(tokenizer, names, self.chats.enable_thinking)
        elif self.chats.enable_thinking is not None:
            raise UserError("the tokenizer has no chat template that would read it", option="enable_thinking")
        self.renders_ids = renders_ids(tokenizer)  # its conversations are not the tokens of any text

    # -- prompts and answers -----------------------------------------------------------------------------------------

    def prompt_ids(self, messages: Sequence[Message], prefix: str = "", tools: str = "") -> list[int]:
        """What stands before the answer: conversation, the template's opening of the answer, the given `prefix`."""
        if self.template is None and not _has_answers(messages):
            _check_plain(messages, tools)
            return self.prefix_ids(_plain_prompt(messages) + prefix)
        if self.template is None:
            _check_plain(messages, tools)
            ids = [index for part, _ in self._plain_parts(messages) for index in part]
        elif self.renders_ids:
            self._check_exact(messages, tools)
            ids = self.template.ids(messages, opens_answer=True)
        else:
            text = self.template.prompt(messages, tools)
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids + self.tokenizer.encode(prefix, add_special_tokens=False) if prefix else ids

    def prompt_and_answers(
        self, messages: Sequence[Message], answers: Sequence[Answer | str], prefix: str = "", tools: str = ""
    ) -> tuple[list[int], list[Answered]]:
        """What all answers follow, and each answer with the token that ends it.

        With a chat template, prompt and answer are the tokens of the whole conversation: what generation is given
        (`prompt_ids`) can differ from the prompt where a template writes answers otherwise than it opens them.
        """
        answers = [Answer(answer, 0.0) if isinstance(answer, str) else answer for answer in answers]
        if self.template is None or self.renders_ids:
            if any(answer.reasoning for answer in answers):
                raise Unencodable("an answer has a thought, and the tokenizer's format has no place for one")
            texts = [answer.text for answer in answers]
            prompt = self.prompt_ids(messages, prefix, tools)
            return prompt, [Answered(ids) for ids in self._answers_ids(messages, texts, prefix, prompt)]
        rows: list[tuple[list[int], int]] = []
        for answer in answers:
            turn = Message("assistant", prefix + answer.text, answer.reasoning)
            ids, (span,) = self._last_turn([*messages, turn], tools, given=prefix)
            rows.append((ids[: span.end], self._trained_from(span, is_last=True)))
        shared = min(start for _, start in rows)
        if any(row[:shared] != rows[0][0][:shared] for row, _ in rows):
            shared = len(commonprefix([row[:shared] for row, _ in rows]))
        return rows[0][0][:shared], [Answered(ids[shared:], start - shared) for ids, start in rows]

    def _answers_ids(
        self, messages: Sequence[Message], answers: Sequence[str], prefix: str, prompt: list[int]
    ) -> list[list[int]]:
        if self.template is None and not _has_answers(messages):
            rows = self.continuations_ids(_plain_prompt(messages) + prefix, answers, prompt)
            return [[*ids, self.end] for ids in rows]
        if self.template is None:
            return [[*ids, self.end] for ids in self._pieces(answers)]
        return [self._exact_answer(messages, answer, prefix, prompt) for answer in answers]

    def _exact_answer(self, messages: Sequence[Message], answer: str, prefix: str, prompt: list[int]) -> list[int]:
        """The end of a conversation that the tokenizer renders as ids."""
        whole = self.template.ids([*messages, Message("assistant", prefix + answer)])
        if whole[: len(prompt)] == prompt:
            return self._ended(_trim_after_end(whole[len(prompt) :], self.special_ids))
        if not prefix:
            raise Unencodable("the tokenizer renders the answer otherwise than it opens one: it cannot be found")
        # Tokens that reach over the end of `prefix`: what is generated stands alone.
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.end]

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] in self.special_ids else [*ids, self.end]

    def ranked_tree(self, record: RankedRecord, *, best_only: bool = False) -> Segment:
        """Prompt as root, answers as branches with their `score`. `best_only`: the best answer alone, for SFT."""
        answers = [record.best] if best_only else record.answers
        with placed(record):
            prompt, encoded = self.prompt_and_answers(record.messages, answers, record.prefix, record.tools)
        prompt, rows = self._fit(prompt, [answer.ids for answer in encoded], record.where)
        branches = [
            Segment(ids, trained=_flags(len(ids), row.given), values={"score": float(answer.score)})
            for ids, row, answer in zip(rows, encoded, answers, strict=True)
        ]
        return Segment(prompt, branches=branches)

    @staticmethod
    def prompt_of(record: Record) -> tuple[Sequence[Message], str, str]:
        """Messages, given prefix and tools that an answer follows: of ranked answers, a chat's last one, or a text."""
        if isinstance(record, RankedRecord):
            return record.messages, record.prefix, record.tools
        if isinstance(record, ChatRecord):
            return record.prompt, "", record.tools
        return [Message("user", record.text)], "", ""

    def record_prompt_ids(self, record: Record, *, continues_text: bool = False) -> list[int]:
        """`prompt_ids` of a record, however long they are. continues_text: a text is gone on with, not answered."""
        with placed(record):
            if continues_text and isinstance(record, TextRecord):
                return self.prefix_ids(record.text)
            return self.prompt_ids(*self.prompt_of(record))

    def prompt_tree(self, record: Record) -> Segment:
        """The prompt alone, for generation."""
        prompt, _ = self._fit(self.record_prompt_ids(record), [], record.where)
        return Segment(prompt)

    # -- conversations -----------------------------------------------------------------------------------------------

    def chat_trees(self, record: ChatRecord) -> list[Segment]:
        """A conversation as one segment in which assistant turns and their ends are trained; or, where the format
        writes earlier turns differently once more turns follow, as one tree for each assistant turn."""
        with placed(record):
            turns = self.trained_turns(record)
            if self.template is None:
                return self._plain_trees(record, turns)
            if self.renders_ids:
                return self._exact_trees(record, turns)
            found = self.template.conversation(record.messages, turns, record.tools)
            if found is None:
                return self._turn_trees(record, turns)
            ids, spans = self._spans(found.text, found.turns, turns, cut=True)
            return [self._whole(record, ids, spans)]

    def trained_turns(self, record: ChatRecord) -> list[int]:
        """The numbers of the turns that are trained. A turn before the first one of a user answers nothing."""
        asked = next((n for n, message in enumerate(record.messages) if message.role in ("user", "tool")), 0)
        turns = [n for n, message in enumerate(record.messages) if message.role == "assistant" and n > asked]
        if not turns:
            raise Unencodable("a conversation without an assistant turn that answers something trains nothing")
        if self.chats.train_turns == "last":
            turns = turns[-1:]
        turns = [number for number in turns if record.messages[number].weight != 0]
        if not turns:
            raise Unencodable("no assistant turn is trained: their weights are 0")
        return turns

    def _whole(self, record: ChatRecord, ids: list[int], spans: Sequence[Span]) -> Segment:
        if len(ids) > self.max_length:
            self._too_long(len(ids), record.where)
            ids = ids[: self.max_length]
        weights = [0.0] * len(ids)
        for span in spans:
            start, end = self._trained_from(span, is_last=span is spans[-1]), min(span.end, len(ids))
            weights[start:end] = [record.messages[span.number].weight] * (end - start)
        if not any(weights):
            raise TooLong(f"{record.where}: no assistant turn begins within --max_length {self.max_length}")
        return _weighted(Segment(ids, trained=[weight != 0 for weight in weights]), weights)

    def _trained_from(self, span: Span, *, is_last: bool) -> int:
        thoughts = self.chats.train_thoughts
        return span.start if thoughts == "all" or (thoughts == "last" and is_last) else max(span.start, span.answer)

    def _turn_trees(self, record: ChatRecord, turns: Sequence[int]) -> list[Segment]:
        """Each turn with what stands before it, as it is rendered while it is the last one."""

        def encoded() -> Iterator[tuple[list[int], Answered]]:
            for number in turns:
                ids, (span,) = self._last_turn(record.messages[: number + 1], record.tools)
                start = self._trained_from(span, is_last=number == turns[-1])
                yield ids[: span.start], Answered(ids[span.start : span.end], start - span.start)

        return self._trees_by_turn(record, turns, encoded())

    def _trees_by_turn(
        self, record: ChatRecord, turns: Sequence[int], encoded: Iterator[tuple[list[int], Answered]]
    ) -> list[Segment]:
        """A tree for each turn, up to the first one that is too long: those after it are longer."""
        trees = []
        for number, (prompt, answer) in zip(turns, encoded, strict=False):
            length = len(prompt) + len(answer.ids)
            prompt, (ids,) = self._fit(prompt, [answer.ids], record.where)
            weight = record.messages[number].weight
            flags = _flags(len(ids), answer.given)
            trees.append(Segment(prompt, branches=[_weighted(Segment(ids, trained=flags), [weight] * len(ids))]))
            if length > self.max_length:
                break
        return trees

    def _last_turn(self, messages: Sequence[Message], tools: str, given: str = "") -> tuple[list[int], list[Span]]:
        """A conversation that ends with an assistant turn, the beginning of which may be given."""
        text, (turn,) = self.template.last_turn(messages, tools)
        if given:
            start = turn.answer + len(given.lstrip())
            if not text.startswith(given.lstrip(), turn.answer):
                raise Unencodable("the given beginning of the answer cannot be found in what the template renders")
            turn = turn._replace(start=start, answer=start)
        return self._spans(text, [turn], [len(messages) - 1])

    def _spans(
        self, text: str, turns: Sequence[Turn], numbers: Sequence[int], *, cut: bool = False
    ) -> tuple[list[int], list[Span]]:
        """The tokens of a rendered conversation up to the end of its last turn, and each turn among them.

        cut: tokens beyond max_length do not matter, so that a very long text is not tokenised to its end.
        """
        limit = CHARACTERS_A_TOKEN * self.max_length
        is_all = self.chats.train_thoughts == "all"  # then nothing depends on where a thought ends
        starts = [turn.start for turn in turns] + [turn.start if is_all else turn.answer for turn in turns]
        ends = [turn.end for turn in turns]
        if cut and len(text) > limit:
            ids, begins, behind = tokens_and_places(self.tokenizer, text[:limit], starts, ends, self._known)
            # The last tokens before a cut are not those of the text.
            cut = len(ids) > self.max_length + CHARACTERS_A_TOKEN
        else:
            cut = False
        if not cut:
            ids, begins, behind = tokens_and_places(self.tokenizer, text, starts, ends, self._known)
        spans = [Span(*each) for each in zip(numbers, begins, begins[len(turns) :], behind, strict=False)]
        ids = ids[: behind[-1]]
        if not turns[-1].ended and not cut:
            ids, spans[-1] = [*ids, self.end], spans[-1]._replace(end=len(ids) + 1)
        return ids, spans

    def _exact_trees(self, record: ChatRecord, turns: Sequence[int]) -> list[Segment]:
        """As chat_trees, of a tokenizer that renders ids."""
        self._check_exact(record.messages, record.tools)

        def encoded() -> Iterator[tuple[list[int], Answered]]:
            for number in turns:
                before = record.messages[:number]
                prompt = self.prompt_ids(before)
                answer = self._exact_answer(before, record.messages[number].content, "", prompt)
                yield prompt, Answered(answer)

        ids: list[int] = []
        spans: list[Span] = []
        for number, (prompt, answer) in zip(turns, encoded(), strict=True):
            if prompt[: len(ids)] != ids or (ids and self.is_prefix):
                return self._trees_by_turn(record, turns, encoded())
            ids = [*prompt, *answer.ids]
            spans.append(Span(number, len(prompt), len(prompt), len(ids)))
            if len(ids) > self.max_length:
                break
        return [self._whole(record, ids, spans)]

    def _plain_trees(self, record: ChatRecord, turns: Sequence[int]) -> list[Segment]:
        """As chat_trees, without a chat template."""
        _check_plain(record.messages, record.tools)
        limit = CHARACTERS_A_TOKEN * self.max_length
        messages = record.messages[: turns[-1] + 1]
        # What lies far beyond max_length is not tokenised.
        short = [replace(message, content=message.content[:limit]) for message in messages]
        ids, spans = self._plain_spans(short, turns)
        if len(ids) <= self.max_length + CHARACTERS_A_TOKEN and any(
            len(message.content) > limit for message in messages
        ):
            ids, spans = self._plain_spans(messages, turns)
        if self.is_prefix and len(turns) > 1:
            by_turn = ((ids[: span.start], Answered(ids[span.start : span.end])) for span in spans)
            return self._trees_by_turn(record, turns, by_turn)
        return [self._whole(record, ids, spans)]

    def _plain_spans(self, messages: Sequence[Message], turns: Sequence[int]) -> tuple[list[int], list[Span]]:
        """The tokens up to the first answer beyond max_length, and the turns among them."""
        ids: list[int] = []
        spans: list[Span] = []
        answers = iter([number for number, message in enumerate(messages) if message.role == "assistant"])
        for part, is_answer in self._plain_parts(messages):
            if is_answer and (number := next(answers)) in turns:
                spans.append(Span(number, len(ids), len(ids), len(ids) + len(part)))
            ids += part
            if is_answer and len(ids) > self.max_length:
                break
        return ids, spans

    def sft_trees(self, record: RankedRecord | ChatRecord) -> list[Segment]:
        if isinstance(record, ChatRecord):
            return self.chat_trees(record)
        return [self.ranked_tree(record, best_only=True)]

    def _plain_parts(self, messages: Sequence[Message]) -> Iterator[tuple[list[int], bool]]:
        """A conversation without a chat template, part by part: what stands before an answer, the answer (True) with
        its end, and so on, up to where the next answer would begin unless the conversation ends with one."""
        pending: list[Message] = []
        is_first = True
        for message in messages:
            if message.role != "assistant":
                pending.append(message)
                continue
            text = _plain_prompt(pending)
            opening = self.prefix_ids(text) if is_first else self.tokenizer.encode(text, add_special_tokens=False)
            yield opening, False
            if is_first:
                yield [*self.continuation_ids(text, message.content, opening), self.end], True
            else:
                yield [*self.tokenizer.encode(message.content, add_special_tokens=False), self.end], True
            pending, is_first = [], False
        if pending:
            yield self.tokenizer.encode(_plain_prompt(pending), add_special_tokens=False), False

    def _check_exact(self, messages: Sequence[Message], tools: str) -> None:
        """Raises Unencodable for what a format of a family has no place for."""
        if tools or any(message.tool_calls for message in messages):
            raise Unencodable(f"{type(self.tokenizer).__name__}: the format of the conversations has no tools")
        if any(message.reasoning for message in messages):
            raise Unencodable(f"{type(self.tokenizer).__name__}: the format of the conversations has no thoughts")


def _has_answers(messages: Sequence[Message]) -> bool:
    return any(message.role == "assistant" for message in messages)


def _plain_prompt(messages: Sequence[Message]) -> str:
    return "\n\n".join(message.content for message in messages) + "\n"


def _check_plain(messages: Sequence[Message], tools: str) -> None:
    """Raises Unencodable for what only a chat template can write."""
    if tools or any(message.tool_calls for message in messages):
        raise Unencodable("the record has tools, and the tokenizer has no chat template that says how to write them")
    if any(message.reasoning for message in messages):
        raise Unencodable("an answer has a thought, and the tokenizer has no chat template that says how to write it")


def _flags(size: int, given: int) -> bool | list[bool]:
    return True if given <= 0 else [place >= given for place in range(size)]


def _weighted(segment: Segment, weights: Sequence[float]) -> Segment:
    """`segment` with the weights of its tokens in the loss, where they are not all the same as no weights."""
    if not {0, 1}.issuperset(weights):
        segment.token_values["weight"] = list(weights)
    return segment


def _trim_after_end(ids: list[int], special_ids: set[int]) -> list[int]:
    """Drops what a template writes after the token that ends an answer (ChatML: a newline)."""
    for position in range(len(ids) - 1, max(len(ids) - 4, -1), -1):
        if ids[position] in special_ids:
            return ids[: position + 1]
    return ids
