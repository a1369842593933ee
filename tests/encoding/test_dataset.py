"""Which records have something to learn from in which form, and what is said of the others."""

from __future__ import annotations

import math

import pytest
from char_tokenizer import build_char_tokenizer

from keju.encoding.dataset import encode_records, left_out
from keju.encoding.encoder import Encoder
from keju.records.record import CONTRADICTION, Answer, ChatRecord, Message, RankedRecord

GOOD, BAD = Answer("a", 1.0, True), Answer("b", 0.0, False)


def ranked(*answers):
    return RankedRecord((Message("user", "c"),), answers, where="f:1")


def chat(*weights):
    turns = [(Message("user", "c"), Message("assistant", "a", weight=weight)) for weight in weights]
    return ChatRecord(tuple(message for pair in turns for message in pair), where="f:1")


@pytest.mark.parametrize(
    ("record", "reasons"),
    [
        (ranked(GOOD), {"ranked": "one answer alone"}),
        (ranked(BAD), {"sft": "the answer is marked as bad", "ranked": "one answer alone"}),
        (ranked(BAD, Answer("c", 0.0, False)), {"sft": "all answers are marked as bad", "ranked": "the same score"}),
        (ranked(GOOD, BAD), {}),
        (ranked(Answer("a", 2.0), Answer("b", 1.0)), {}),
        (ranked(Answer("a", 1.0)), {"ranked": "one answer alone", "kto": "no mark"}),
        (ranked(Answer("a", 1.0), Answer("b", 1.0)), {"ranked": "the same score", "kto": "no mark"}),
        (ranked(Answer("a", 1.0), Answer("a", 0.0)), dict.fromkeys(("sft", "ranked", "kto"), CONTRADICTION)),
        (ranked(Answer("a", 1.0), Answer("a", 0.0), Answer("b", 0.0)), {}),
        (chat(0.0, 0.0), {"sft": "no assistant turn has a weight"}),
        (chat(0.0, 0.5), {}),
    ],
)
def test_what_is_left_out_and_why(record, reasons):
    for form in ("sft", "ranked", "kto", "prompt"):
        found = left_out(record, form) if isinstance(record, RankedRecord) or form == "sft" else ""
        assert reasons.get(form, "") in found and bool(found) == (form in reasons), (form, found)


def test_bad_answers_are_counted_and_never_trained_by_sft():
    encoder = Encoder(build_char_tokenizer(), 32)
    encoded = encode_records([ranked(BAD), ranked(BAD, GOOD)], encoder, "sft")
    assert encoded.skipped == ["f:1: the answer is marked as bad"] and len(encoded) == 1
    (branch,) = encoded[0].branches
    assert branch.tokens == encoder.ranked_tree(ranked(GOOD)).branches[0].tokens


def test_marks_are_values_of_trees():
    encoder = Encoder(build_char_tokenizer(), 32)
    (tree,) = encode_records([ranked(BAD, GOOD, Answer("c", 0.5))], encoder, "kto").trees
    assert [branch.values.get("is_good", math.nan) for branch in tree.branches][:2] == [0.0, 1.0]
    assert "is_good" not in tree.branches[2].values
