"""Any record written as a row is read back as the same record."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from keju.data_prepare.cleaning.row_texts import texts_of, with_texts
from keju.data_prepare.formats.canonical import row_of
from keju.records.formats import detect
from keju.records.record import Answer, ChatRecord, Message, RankedRecord

FILLED = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(str.strip)
EMPTY = st.just("")
NAMES = st.text("abcxyz_", min_size=1, max_size=5)
VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.characters(codec="utf-8"), max_size=4)
ARGUMENTS = st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=2), max_size=3)


def text_of(items):
    return json.dumps(items, ensure_ascii=False) if items else ""


CALLS = st.lists(
    st.builds(
        lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
        *(NAMES, ARGUMENTS),
    ),
    min_size=1,
    max_size=2,
).map(text_of)
TOOLS = st.lists(
    st.builds(
        lambda name, about: {"type": "function", "function": {"name": name, "description": about}}, NAMES, FILLED
    ),
    max_size=2,
).map(text_of)
WEIGHTS = st.sampled_from([0.0, 0.25, 1.0, 3.0])
REASONING = EMPTY | FILLED
USER = st.builds(Message, st.just("user"), FILLED)
SAYS = st.builds(Message, st.just("assistant"), FILLED, REASONING, EMPTY | CALLS, EMPTY, WEIGHTS)
CALLS_ONLY = st.builds(Message, st.just("assistant"), EMPTY, REASONING, CALLS, EMPTY, WEIGHTS)
TOOL = st.builds(lambda said, name: Message("tool", said, name=name), EMPTY | FILLED, EMPTY | NAMES)
SYSTEM = st.lists(st.builds(Message, st.just("system"), FILLED), max_size=1)
TURNS = st.lists(USER | SAYS | CALLS_ONLY | TOOL, max_size=4)
CHATS = st.builds(
    lambda system, turns, last, tools: ChatRecord((*system, *turns, last), tools=tools), SYSTEM, TURNS, SAYS, TOOLS
)
ANSWERS = st.builds(Answer, FILLED, st.floats(-5, 5), st.none() | st.booleans(), REASONING)
RANKED = st.builds(
    lambda system, turns, question, answers, prefix, tools: RankedRecord(
        (*system, *turns, question), tuple(answers), prefix, tools=tools
    ),
    *(SYSTEM, TURNS, USER, st.lists(ANSWERS, min_size=1, max_size=3), EMPTY | FILLED, TOOLS),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(record=CHATS | RANKED)
@example(record=ChatRecord((Message("user", "a"), Message("assistant", "b", reasoning="NULL"))))
def test_a_record_written_and_read_again_is_the_same(record):
    row = row_of(record)
    assert detect(json.loads(json.dumps(row, ensure_ascii=False))) == record
    assert with_texts(row, texts_of(row)) == row
