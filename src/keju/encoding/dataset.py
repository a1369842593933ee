"""All records of a file as token trees, with what was left out counted and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from keju.encoding.encoder import Encoder
from keju.encoding.refusals import TooLong, Unencodable
from keju.errors import UserError
from keju.records.record import CONTRADICTION, ChatRecord, RankedRecord, Record, TextRecord
from keju.trees.segment import Segment


@dataclass
class EncodedRecords:
    """trees and the `file:line` of each, in memory or read where they are used (see keju.encoding.token_store).

    skipped: `file:line: why` of what was left out, of the first of them at least; unlisted: how many there are more.
    num_records: read and good, of which trees were made or that were skipped; num_bad: rows that were no records.
    """

    trees: Sequence[Segment] = field(default_factory=list)
    where: Sequence[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unlisted: int = 0
    digest: str = ""  # a hash of the bytes of the files
    num_bad: int = 0
    num_records: int = 0

    @property
    def num_skipped(self) -> int:
        return len(self.skipped) + self.unlisted

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> Segment:
        return self.trees[index]


def _text(encoder: Encoder, record: Record) -> list[Segment]:
    return encoder.text_trees(record)


def _sft(encoder: Encoder, record: Record) -> list[Segment]:
    return encoder.sft_trees(record)


def _ranked(encoder: Encoder, record: Record) -> list[Segment]:
    return [encoder.ranked_tree(record)]


def _marked(encoder: Encoder, record: Record) -> list[Segment]:
    """Ranked answers, of which those that the record itself calls good or bad have `is_good` (1 or 0) as well."""
    tree = encoder.ranked_tree(record)
    for branch, answer in zip(tree.branches, record.answers, strict=True):
        if answer.is_good is not None:
            branch.values["is_good"] = float(answer.is_good)
    return [tree]


def _prompt(encoder: Encoder, record: Record) -> list[Segment]:
    return [encoder.prompt_tree(record)]


NO_PAIR = "one answer alone, nothing to prefer (train_dpo --loss_type kto learns from marked answers without pairs)"

# How each stage turns a record into trees, and which kinds of record it can use.
FORMS: dict[str, tuple[Callable[[Encoder, Record], list[Segment]], tuple[type, ...]]] = {
    "text": (_text, (TextRecord,)),
    "sft": (_sft, (RankedRecord, ChatRecord)),
    "ranked": (_ranked, (RankedRecord,)),
    "kto": (_marked, (RankedRecord,)),
    "prompt": (_prompt, (RankedRecord, ChatRecord, TextRecord)),
}


def encode_records(
    records: Iterable[Record] | Sequence[Record],
    encoder: Encoder,
    form: str,
    *,
    on_bad_line: str = "error",
    on_record: Callable[[int], None] = lambda count: None,
) -> EncodedRecords:
    """Encodes records in the way of `form` (see FORMS).

    Records longer than max_length are skipped and listed when the encoder's `on_long` is "skip", and those that cannot
    be encoded when `on_bad_line` is. Raises UserError naming `file:line` for anything else. `on_record(1)` is called
    after each, for a bar.
    """
    encoded = EncodedRecords([], [])
    for record in records:
        try:
            trees = encode_record(record, encoder, form)
        except Unencodable as reason:
            if on_bad_line == "error":
                raise
            trees = str(reason)
        if isinstance(trees, str):
            encoded.skipped.append(trees)
        else:
            encoded.trees += trees
            encoded.where += [record.where] * len(trees)
        on_record(1)
    if not encoded.trees:
        raise UserError(nothing_usable(encoded.skipped, len(encoded.skipped)))
    return encoded


def encode_record(record: Record, encoder: Encoder, form: str) -> list[Segment] | str:
    """The trees of one record, or `file:line: why` it is left out.

    Raises Unencodable for a record that makes no tokens, and UserError as `encode_records` does.
    """
    encode, kinds = FORMS[form]
    if not isinstance(record, kinds):
        names = " or ".join(kind.__name__.removesuffix("Record").lower() for kind in kinds)
        raise Unencodable(f"{record.where}: this stage needs {names} records, see docs/records.md")
    why = left_out(record, form)
    if why:
        return f"{record.where}: {why}"
    try:
        return encode(encoder, record)
    except TooLong as reason:
        if encoder.on_long == "error":
            raise
        return str(reason)


def left_out(record: Record, form: str) -> str:
    """Why a record has nothing to learn from in this form; "" where it has."""
    if isinstance(record, RankedRecord) and form != "prompt":
        marks = [answer.is_good for answer in record.answers]
        if record.contradicts_itself:
            return CONTRADICTION
        if form == "sft" and record.best.is_good is False:
            return "the answer is marked as bad" if len(marks) == 1 else "all answers are marked as bad"
        if form == "ranked" and not record.has_preference:
            return NO_PAIR if len(marks) == 1 else "all answers have the same score, nothing to prefer"
        if form == "kto" and not record.has_preference and all(mark is None for mark in marks):
            return "no mark says whether the answer is good, and no other answer has another score"
    if isinstance(record, ChatRecord) and form == "sft":
        weights = [message.weight for message in record.messages if message.role == "assistant"]
        if weights and not any(weights):
            return "no assistant turn has a weight above 0"
    return ""


def nothing_usable(skipped: Sequence[str], count: int) -> str:
    """What to say where all `count` records were left out, for the reasons `skipped`."""
    return f"no usable record of {count} read" + (f"; first: {skipped[0]}" if skipped else "")
