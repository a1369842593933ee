"""Wrong answers: of the right distance, never a right one, each about as often."""

from __future__ import annotations

from collections import Counter

from keju.data_prepare.corpus import Item
from keju.data_prepare.pipeline.drawing import level_of, wrong_answers


def poem(number: int, author: str, genre: str, *, text: str | None = None, group: str | None = None) -> Item:
    row = {"prompt": f"诗{number}", "answers": [{"answer": text or f"答{number}", "score": 1}]}
    return Item(row, f"f:{number}", group or f"g{number}", keys=(author, genre))


def drawn(items: list[Item], position: int, *wanted) -> list[tuple[str, int]]:
    answers, _ = wrong_answers(items[position], range(len(items)), position, lambda index: items[index], wanted)
    return [(answer["answer"], answer["score"]) for answer in answers]


def test_levels():
    assert level_of(("李白", "诗"), ("李白", "诗")) == 0
    assert level_of(("李白", "诗"), ("杜甫", "诗")) == 1
    assert level_of(("李白", "诗"), ("柳永", "词")) == 2
    assert level_of((), ()) == 0


def test_answers_are_of_the_distance_asked_for():
    authors = (("李白", "诗"), ("杜甫", "诗"), ("李白", "诗"), ("柳永", "词"), ("杜甫", "诗"))
    items = [poem(number, author, genre) for number, (author, genre) in enumerate(authors)]
    assert drawn(items, 0, (0, 0, 1), (1, -1, 2), (2, -2, 1)) == [("答1", -1), ("答2", 0), ("答3", -2), ("答4", -1)]


def test_own_group_and_equal_answers_are_no_wrong_answers():
    items = [poem(0, "a", "b"), poem(1, "a", "b", group="g0"), poem(2, "a", "b", text="答0"), poem(3, "a", "b")]
    assert drawn(items, 0, (0, 0, 3)) == [("答3", 0)]


def test_what_is_not_found_is_counted():
    items = [poem(0, "a", "b"), poem(1, "a", "b")]
    wanted = [(0, 0, 2), (2, -2, 1)]
    assert wrong_answers(items[0], range(2), 0, lambda index: items[index], wanted) == (
        [{"answer": "答1", "score": 0}],
        2,
    )


def test_every_answer_is_given_about_as_often():
    items = [poem(number, "李白", "诗") for number in range(50)]
    texts = Counter()
    for position in range(50):
        texts.update(text for text, _ in drawn(items, position, (0, 0, 2)))
    assert set(texts.values()) == {2} and len(texts) == 50
