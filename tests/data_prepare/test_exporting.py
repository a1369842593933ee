"""What is exported and read again is what it was, and what a format cannot hold is said."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from keju.data_prepare.corpora import records
from keju.data_prepare.corpus import Item
from keju.data_prepare.exporting import LAYOUTS, Choices, columns, export
from keju.data_prepare.formats.canonical import row_of
from keju.data_prepare.formats.row_files import SUFFIXES, row_file
from keju.records.formats import detect
from keju.records.record import Answer, ChatRecord, Message, RankedRecord, TextRecord

FILLED = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
ROUNDS = st.lists(st.tuples(FILLED, FILLED), min_size=1, max_size=3)
SYSTEM = st.none() | FILLED
PLAIN, TURNS = Choices(), Choices(conversational=True)


def context(system, rounds):
    begin = [Message("system", system)] if system else []
    said = [Message(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)]
    return (*begin, *said)


CHATS = st.builds(lambda system, rounds: ChatRecord(context(system, rounds)), SYSTEM, ROUNDS)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["user", "assistant", "tool"]), FILLED), min_size=1, max_size=5)
ANY_CHATS = MESSAGES.filter(lambda messages: any(message.role == "assistant" for message in messages)).map(
    lambda messages: ChatRecord(tuple(messages))
)
OPEN_CHATS = st.builds(lambda system, rounds: ChatRecord(context(system, rounds)[:-1]), SYSTEM, ROUNDS)
SCORED = st.lists(st.builds(Answer, FILLED, st.floats(-5, 5)), min_size=1, max_size=4).map(tuple)
RANKED = st.builds(
    lambda system, rounds, answers: RankedRecord(context(system, rounds)[:-1], answers), SYSTEM, ROUNDS, SCORED
)
PREFIXED = st.builds(lambda record, prefix: RankedRecord(record.messages, record.answers, prefix), RANKED, FILLED)
PLAIN_PAIRS = st.builds(
    lambda prompt, good, bad: RankedRecord((Message("user", prompt),), (Answer(good, 1.0), Answer(bad, 0.0))),
    *(FILLED, FILLED, FILLED),
)
TEXTS = st.builds(lambda text: TextRecord(text), FILLED)
LABELLED = st.builds(lambda text, label: TextRecord(text + label, label=label), FILLED, FILLED)


def imported(tmp_path, found, layout, suffix, choices):
    """The records of a file that holds these records in a layout."""
    path = tmp_path / f"data{suffix}"
    with row_file(path, columns(layout, choices)) as write:
        for record in found:
            for row in export(row_of(record), layout, choices).rows:
                write(row)
    items = [item for piece in records.pieces(path, 300) for item in records.read(path, piece)]
    assert all(isinstance(item, Item) for item in items), items
    return [detect(item.row) for item in items]


TEXT_FILES = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json"]
HOLDS = {
    "records": (st.one_of(ANY_CHATS, CHATS, RANKED, PREFIXED, TEXTS, LABELLED), TEXT_FILES, PLAIN),
    "records as tables": (st.one_of(CHATS, TEXTS, LABELLED), [".parquet"], PLAIN),
    "alpaca": (CHATS, [*TEXT_FILES, ".parquet"], PLAIN),
    "alpaca as tables": (CHATS.filter(lambda chat: len(chat.messages) < 4), [".csv"], PLAIN),
    "sharegpt": (CHATS | ANY_CHATS, [*TEXT_FILES, ".parquet"], PLAIN),
    "messages": (CHATS | ANY_CHATS, [*TEXT_FILES, ".parquet"], PLAIN),
    "preference": (PLAIN_PAIRS, [*TEXT_FILES, ".csv", ".parquet"], PLAIN),
    "preference in turns": (RANKED, [*TEXT_FILES, ".parquet"], TURNS),
    "ranked": (RANKED, [*TEXT_FILES, ".parquet"], PLAIN),
    "kto": (PLAIN_PAIRS, [*TEXT_FILES, ".csv", ".parquet"], PLAIN),
    "kto in turns": (RANKED, [*TEXT_FILES, ".parquet"], TURNS),
    "prompts": (TEXTS, [*TEXT_FILES, ".csv", ".parquet"], PLAIN),
    "prompts in turns": (OPEN_CHATS.filter(lambda chat: len(chat.messages) < 3), [*TEXT_FILES, ".parquet"], TURNS),
    "text": (TEXTS, [*TEXT_FILES, ".csv", ".parquet"], PLAIN),
}


def as_held(record, layout):
    """What can be read again: scores that only order, or only tell good from bad."""
    if not isinstance(record, RankedRecord) or layout == "records":
        return record
    scores = sorted({answer.score for answer in record.answers}, reverse=True)
    if layout == "preference":
        assume(len(record.answers) == 2)
    assume(len(scores) == len(record.answers) and not record.contradicts_itself)
    ordered = sorted(record.answers, key=lambda answer: -answer.score)
    if layout == "kto":
        assume(len(scores) == 1 or len(scores) == 2 and len({answer.text for answer in ordered}) == 2)
        good = [answer.score == scores[0] for answer in record.answers]
        ordered = [Answer(answer.text, float(mark), mark) for answer, mark in zip(record.answers, good, strict=True)]
    else:
        best = 1 if layout == "preference" else 0
        ordered = [Answer(answer.text, float(best - rank)) for rank, answer in enumerate(ordered)]
    assume(layout != "kto" or (ordered[0].score + ordered[-1].score) / 2 < scores[0])
    return RankedRecord(record.messages, tuple(ordered))


@pytest.mark.parametrize("name", HOLDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_exported_and_read_again_is_the_same(name, data, tmp_path_factory):
    kind, suffixes, choices = HOLDS[name]
    layout, suffix = name.split()[0], data.draw(st.sampled_from(suffixes))
    found = data.draw(st.lists(kind, min_size=1, max_size=3))
    if suffix == ".csv":
        assume("\0" not in str([row_of(record) for record in found]) and "\\x00" not in repr(found))
    if layout == "kto":  # rows of one prompt that follow each other are one record
        prompts = [record.messages for record in found]
        assume(all(one != other for one, other in zip(prompts, prompts[1:], strict=False)))
    expected = [as_held(record, layout) for record in found]
    assert imported(tmp_path_factory.mktemp("export"), found, layout, suffix, choices) == expected


def ranked(*scores, prompt="问", **fields):
    return {"prompt": prompt, **fields, "answers": [{"answer": f"答{n}", "score": s} for n, s in enumerate(scores)]}


def test_pairs():
    row = ranked(1, 3, 2, 3)
    pairs = [(row["chosen"], row["rejected"]) for row in export(row, "preference", PLAIN).rows]
    assert pairs == [("答1", "答0"), ("答1", "答2"), ("答2", "答0"), ("答3", "答0"), ("答3", "答2")]
    best, left_out = export(row, "preference", Choices(pairs="best_worst"))
    assert (
        best == [{"prompt": "问", "chosen": "答1", "rejected": "答0"}]
        and left_out == "answers between the best and the worst"
    )


def test_kto_labels_are_those_of_our_own_kto():
    torch = pytest.importorskip("torch")
    from keju.losses.kto import desirable_answers

    for scores in ((1, 0), (3, 1, 2), (5, 1, 0, 0), (0.1, 0.2)):
        rows, left_out = export(ranked(*scores), "kto", PLAIN)
        tree = torch.zeros(len(scores), dtype=torch.long)
        good, bad = desirable_answers(torch.tensor(scores, dtype=torch.float64), tree)
        expected = [bool(g) for g, b in zip(good, bad, strict=True) if g or b]
        assert [row["label"] for row in rows] == expected
        assert bool(left_out) == (len(rows) < len(scores))
    assert export(ranked(-3), "kto", PLAIN).rows == [{"prompt": "问", "completion": "答0", "label": True}]


def test_what_is_left_out_is_named():
    assert export(ranked(1, 0), "alpaca", PLAIN) == (
        [{"instruction": "问", "input": "", "output": "答0"}],
        "answers other than the best",
    )
    assert export({"prompt": "春", "label": "眠"}, "text", PLAIN) == ([{"text": "春眠"}], "where the label begins")
    assert export({"prompt": "春", "label": "眠"}, "prompts", PLAIN).rows == [{"prompt": "春"}]
    assert export(ranked(1), "prompts", TURNS).rows == [{"prompt": [{"role": "user", "content": "问"}]}]


CHAT = {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}
OPEN = {"messages": [*CHAT["messages"], {"role": "user", "content": "再问"}]}
REFUSED = [
    ("alpaca", {"text": "文"}, "a text has no turns"),
    ("alpaca", OPEN, "does not end with an answer"),
    ("alpaca", {"messages": [CHAT["messages"][1]]}, "questions and answers in turn"),
    ("alpaca", {"messages": [{"role": "tool", "content": "晴"}, CHAT["messages"][1]]}, "questions and answers in turn"),
    ("sharegpt", {"prompt": [CHAT["messages"][0]]}, "a prompt without an answer"),
    ("messages", ranked(1, prefix="答："), '"prefix"'),
    ("preference", CHAT, "ranked answers are needed"),
    ("preference", ranked(1, 1), "all answers have the same score"),
    ("preference", ranked(1, 0, system="你是学者"), "neither a system turn"),
    ("preference", ranked(1, 0, prompt=OPEN["messages"]), "nor earlier turns; use --conversational"),
    ("kto", ranked(1, 1), "none is good or bad"),
    ("kto", OPEN, "does not end with an answer"),
    ("kto", {"text": "文"}, "ranked answers are needed"),
    ("ranked", ranked(1, 0, 1), "two answers have the same score"),
    ("ranked", ranked(1, 0, prefix="答："), '"prefix"'),
    ("prompts", {"messages": [CHAT["messages"][1]]}, "has no prompt"),
    ("text", CHAT, "chat template"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "row", "reason"), REFUSED)
def test_what_a_layout_cannot_hold_is_refused(layout, row, reason):
    with pytest.raises(ValueError, match=reason):
        export(row, layout, PLAIN)


@pytest.mark.parametrize(
    ("suffix", "layout", "row", "reason"),
    [
        (".csv", "alpaca", {"instruction": "问", "output": "答", "history": [["a", "b"]]}, 'cannot hold "history"'),
        (".csv", "alpaca", {"instruction": "问", "output": "a\0b"}, "zero byte"),
        (".parquet", "records", {"prompt": [{"role": "user", "content": "问"}]}, 'column "prompt" .* holds text'),
        (".txt", "text", {"text": "甲\n乙"}, "several lines"),
        (
            ".jsonl",
            "records",
            {"prompt": "问", "answers": [{"answer": "a", "score": float("nan")}]},
            "not JSON compliant",
        ),
    ],
)
def test_what_a_file_cannot_hold_leaves_the_old_one(tmp_path, suffix, layout, row, reason):
    path = tmp_path / f"a{suffix}"
    path.write_text("old")
    with pytest.raises(ValueError, match=reason), row_file(path, columns(layout, PLAIN)) as write:
        write(row)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "layout", "choices", "reason"),
    [
        ("a.xlsx", "text", PLAIN, "must end in .jsonl, .jsonl.gz"),
        ("a.txt", "alpaca", PLAIN, "holds texts only"),
        ("a.csv", "messages", PLAIN, "hold texts, not lists of turns"),
        ("a.csv", "prompts", TURNS, "hold texts, not lists of turns"),
    ],
)
def test_files_that_are_not_written(tmp_path, name, layout, choices, reason):
    with pytest.raises(ValueError, match=reason), row_file(tmp_path / name, columns(layout, choices)):
        pass
    assert not list(tmp_path.iterdir())


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for suffix in SUFFIXES:
        for name in ("a", "b"):
            with row_file(tmp_path / f"{name}{suffix}", columns("text", PLAIN)) as write:
                for number in range(2000):
                    write({"text": f"第{number}篇"})
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_every_layout_has_the_columns_of_its_rows():
    for layout in LAYOUTS:
        for row in (ranked(1, 0), CHAT, {"text": "文"}):
            for choices in (PLAIN, TURNS):
                try:
                    found = export(row, layout, choices).rows
                except ValueError:
                    continue
                assert all(set(row) <= set(columns(layout, choices)) for row in found)
