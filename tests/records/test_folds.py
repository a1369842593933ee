"""Parts of a data set share no prompt, and together are all of it."""

import pytest

from keju.records.folds import Fold
from keju.records.record import Answer, Message, RankedRecord


def record(prompt: str, answer: str = "x") -> RankedRecord:
    return RankedRecord((Message("user", prompt),), (Answer(answer, 1.0),))


def test_every_prompt_is_in_one_part():
    records = [record(f"成语 {number}") for number in range(300)]
    for count in (1, 2, 3):
        parts = [[one for one in records if Fold(f"{number}/{count}").holds(one)] for number in range(1, count + 1)]
        assert sum(map(len, parts)) == 300 and min(map(len, parts)) > 300 / count / 1.5
    assert Fold("1/2").holds(record("a")) == Fold("1/2").holds(record("a", "another answer"))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", ""])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="^fold: "):
        Fold(text)
