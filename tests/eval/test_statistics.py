from __future__ import annotations

import pytest

from keju.eval.statistics import wilson_interval


def test_wilson_by_hand():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_is_symmetric_and_within_bounds():
    low, high = wilson_interval(20, 20)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(0, 20))
    assert high <= 1


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="nothing was scored"):
        wilson_interval(0, 0)


def test_the_share_lies_within_its_interval():
    for total in range(1, 700):
        for correct in (0, 1, total - 1, total):
            low, high = wilson_interval(correct, total)
            assert 0 <= low <= correct / total <= high <= 1
