"""distinct-n and repetition against counts by hand."""

import pytest

from keju.rl.diversity import distinct, repetition


def test_by_hand():
    responses = [(1, 2, 1, 2, 1), (1, 2, 3)]
    # unigrams: {1, 2, 3} of 8; bigrams 12 21 12 21 | 12 23: {12, 21, 23} of 6
    assert distinct(responses, 1) == pytest.approx(3 / 8)
    assert distinct(responses, 2) == pytest.approx(3 / 6)
    # inside the first, 2 of 4 bigrams are new; inside the second, both
    assert repetition(responses) == pytest.approx((0.5 + 0.0) / 2)


def test_nothing_to_count():
    assert distinct([(7,)], 2) == 1.0
    assert repetition([(7,), ()]) == 0.0
    assert repetition([(7,) * 5]) == pytest.approx(0.75)
