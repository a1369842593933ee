"""Counts of a step add up to the same however the rows were divided, and survive a restart."""

import json

from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.step import EXAMPLES_KEPT, Step, merge

ROWS = st.lists(st.tuples(st.sampled_from(["short", "broken", "kept"]), st.text(max_size=4), st.integers(0, 3)))


def counted(rows):
    step = Step("clean", rows_in=len(rows))
    for reason, example, masks in rows:
        if reason == "kept":
            step.rows_out += 1
            step.rows_changed += masks > 0
            step.changes["mask"] += masks
        else:
            step.drop(reason, example)
    return step


@given(st.lists(ROWS, min_size=1, max_size=4), st.randoms())
def test_counts_do_not_depend_on_how_rows_are_divided(parts, rng):
    together = merge([[counted([row for part in parts for row in part])]])
    steps = [[counted(part)] for part in parts]
    rng.shuffle(steps)
    assert [step.as_row() for step in merge(steps)] == [step.as_row() for step in together]
    assert json.dumps(merge(steps)[0].as_row()) == json.dumps(together[0].as_row())  # the order of reasons too


@given(ROWS)
def test_a_report_can_be_gone_on_with(rows):
    step = counted(rows)
    assert Step.from_row(json.loads(json.dumps(step.as_row()))).as_row() == step.as_row()


def test_few_examples_are_kept_and_none_twice():
    step = counted([("short", f"row {number % 7}", 0) for number in range(100)])
    assert len(set(step.examples["short"])) == len(step.examples["short"]) == EXAMPLES_KEPT
    assert step.as_row()["dropped"]["short"]["rows"] == 100


def test_steps_keep_their_order():
    parts = [[Step("second"), Step("first")], [Step("second"), Step("first"), Step("third")]]
    assert [step.name for step in merge(parts)] == ["second", "first", "third"]
