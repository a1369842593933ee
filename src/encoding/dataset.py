"""All records of a file as token trees, with what was left out counted and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from keju.encoding.encoder import Encoder
from keju.encoding.refusals import TooLong, Unencodable
from keju.records.record import ChatRecord, RankedRecord, Record, TextRecord
from keju.trees.segment import Segment


@dataclass
class EncodedRecords:
    """trees and the `file:line` of each, in memory or read where they are used (see keju.encoding.token_store).

    skipped: `file:line: why` of what was left out, of the first of them at least; unlisted: how many there are more.
    """

    trees: Sequence[Segment] = field(default_factory=list)
    where: Sequence[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unlisted: int = 0

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


def _prompt(encoder: Encoder, record: Record) -> list[Segment]:
    return [encoder.prompt_tree(record)]


# How each stage turns a record into trees, and which kinds of record it can use.
FORMS: dict[str, tuple[Callable[[Encoder, Record], list[Segment]], tuple[type, ...]]] = {
    "text": (_text, (TextRecord,)),
    "sft": (_sft, (RankedRecord, ChatRecord)),
    "ranked": (_ranked, (RankedRecord,)),
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
    be encoded when `on_bad_line` is. Raises ValueError naming `file:line` for anything else. `on_record(1)` is called
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
        raise ValueError(nothing_usable(encoded.skipped, len(encoded.skipped)))
    return encoded


def encode_record(record: Record, encoder: Encoder, form: str) -> list[Segment] | str:
    """The trees of one record, or `file:line: why` it is left out.

    Raises Unencodable for a record that makes no tokens, and ValueError as `encode_records` does.
    """
    encode, kinds = FORMS[form]
    if not isinstance(record, kinds):
        names = " or ".join(kind.__name__.removesuffix("Record").lower() for kind in kinds)
        raise Unencodable(f"{record.where}: this stage needs {names} records, see README, Records")
    if form == "ranked" and not record.has_preference:
        return f"{record.where}: all answers have the same score, nothing to prefer"
    try:
        return encode(encoder, record)
    except TooLong as reason:
        if encoder.on_long == "error":
            raise
        return str(reason)


def nothing_usable(skipped: Sequence[str], count: int) -> str:
    """What to say where all `count` records were left out, for the reasons `skipped`."""
    return f"no usable record of {count} read" + (f"; first: {skipped[0]}" if skipped else "")
