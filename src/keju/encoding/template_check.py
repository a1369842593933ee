"""Our tokens of a record beside those of the chat template's own rendering of the whole conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import commonprefix

from keju.encoding.dataset import FORMS
from keju.encoding.encoder import Encoder
from keju.encoding.refusals import placed
from keju.errors import UserError
from keju.records.record import ChatRecord, Message, RankedRecord, Record
from keju.trees.segment import Segment


def check_against_template(record: Record, encoder: Encoder, form: str) -> bool:
    """Whether there was something to compare: texts and tokenizers without a chat template have no rendering.

    encoder: with room for the whole record. What a template writes behind the token that ends the last turn is not
    learned, and our own end token stands where it writes none. Raises UserError "file:line: ..." for a difference.
    """
    encode, kinds = FORMS[form]
    if encoder.template is None or form == "text" or not isinstance(record, kinds):
        return False
    trees = encode(encoder, record)
    with placed(record):
        pairs = list(_pairs(record, encoder, form, trees))
    for ours, expected in pairs:
        place = len(commonprefix([ours, expected]))
        is_equal = place == len(ours) or (place == len(ours) - 1 and place == len(expected) and ours[-1] == encoder.end)
        if is_equal and not set(expected[place:]) & encoder.special_ids:
            continue
        here, there = (encoder.tokenizer.decode(ids[max(0, place - 3) : place + 5]) for ids in (ours, expected))
        raise UserError(
            f"{record.where}: token {place} is not that of the chat template's own rendering: "
            f"{here!r} instead of {there!r}"
        )
    return True


def _pairs(
    record: Record, encoder: Encoder, form: str, trees: Sequence[Segment]
) -> Iterator[tuple[list[int], list[int]]]:
    """(our ids, the template's) of every path from a root to a leaf."""
    messages, prefix, tools = encoder.prompt_of(record)
    if form == "prompt":
        ids = encoder.template.ids(messages, tools, opens_answer=True)
        given = encoder.tokenizer.encode(prefix, add_special_tokens=False) if prefix else []
        yield list(trees[0].tokens), ids + given
    elif isinstance(record, RankedRecord):
        answers = [record.best] if form == "sft" else record.answers
        for answer, branch in zip(answers, trees[0].branches, strict=True):
            turn = Message("assistant", prefix + answer.text, answer.reasoning)
            yield [*trees[0].tokens, *branch.tokens], encoder.template.ids([*messages, turn], tools)
    elif isinstance(record, ChatRecord):
        turns = encoder.trained_turns(record)
        for tree, number in zip(trees, turns if trees[0].branches else turns[-1:], strict=True):
            ours = [index for segment in tree.preorder() for index in segment.tokens]
            yield ours, encoder.template.ids(record.messages[: number + 1], tools)


def trained_text(tree: Segment, encoder: Encoder) -> str:
    """What is trained of a tree, as a text; " | " stands where something else is between."""
    parts: list[list[int]] = []
    for segment in tree.preorder():
        parts.append([])
        for index, is_trained in zip(segment.tokens, segment.trained_flags, strict=True):
            if is_trained:
                parts[-1].append(index)
            elif parts[-1]:
                parts.append([])
    return " | ".join(repr(encoder.tokenizer.decode(ids))[1:-1] for ids in parts if ids)
