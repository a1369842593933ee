"""The health monitor on histories written by hand: what must fire fires, what is learning or noise does not."""

import random

import pytest

from keju.rl.health import HealthMonitor, change

WINDOW = 5
HEALTHY = {
    "reward": 0.0,
    "judge": 0.0,
    "ref_logprob": -2.0,
    "response_length": 40.0,
    "repetition": 0.1,
    "distinct_2": 0.8,
    "kl_per_token": 0.02,
    "fraction_finished": 0.9,
    "entropy": 2.0,
}


def history(steps: int, noise: float = 0.02, without: tuple[str, ...] = (), **goals: float) -> list[dict[str, float]]:
    """Rows that walk from HEALTHY to `goals` in a straight line, with relative noise."""
    rng = random.Random(0)
    rows = []
    for step in range(1, steps + 1):
        way = (step - 1) / (steps - 1)
        row = {"step": step}
        for name, start in HEALTHY.items():
            value = start + (goals.get(name, start) - start) * way
            row[name] = value + noise * rng.gauss(0, 1) * (abs(start) or 1)
        rows.append({name: value for name, value in row.items() if name not in without})
    return rows


def fired(rows) -> set[str]:
    monitor = HealthMonitor(WINDOW)
    return {alarm.name for row in rows for alarm in monitor.check(row)}


def test_noise_and_honest_learning_raise_no_alarm():
    assert fired(history(60, noise=0.1)) == set()
    better = {"reward": 3.0, "judge": 1.5, "ref_logprob": -2.4, "response_length": 55, "kl_per_token": 0.2}
    assert fired(history(60, **better, entropy=1.0, distinct_2=0.65)) == set()


@pytest.mark.parametrize(
    ("name", "goals"),
    [
        ("reward_is_fooled", {"reward": 3.0, "judge": -1.0}),
        ("length_runs_away", {"response_length": 120.0}),
        ("length_runs_away", {"response_length": 8.0}),
        ("text_repeats", {"repetition": 0.8}),
        ("text_repeats", {"distinct_2": 0.2}),
        ("kl_runs_away", {"kl_per_token": 1.2}),
        ("ends_disappear", {"fraction_finished": 0.2}),
        ("entropy_collapses", {"entropy": 0.1}),
    ],
)
def test_each_rule_fires_for_its_trouble_alone(name, goals):
    assert fired(history(60, **goals)) == {name}


def test_without_a_judge_the_reference_is_asked():
    fooled = {"reward": 3.0, "ref_logprob": -4.0}
    assert fired(history(60, **fooled, without=("judge",))) == {"reward_is_fooled"}
    assert fired(history(60, **fooled, judge=1.0)) == set()  # a held-out judge overrules it
    assert fired(history(60, reward=3.0, ref_logprob=-2.3, without=("judge",))) == set()


def test_a_rule_that_has_fired_is_quiet_for_a_window():
    monitor = HealthMonitor(WINDOW)
    steps = [alarm.step for row in history(60, kl_per_token=3.0) for alarm in monitor.check(row)]
    assert len(steps) > 2 and all(later - earlier == WINDOW for earlier, later in zip(steps, steps[1:], strict=False))


def test_a_new_start_forgets():
    monitor = HealthMonitor(WINDOW)
    rows = history(60, response_length=120.0)
    for row in rows[:50]:
        monitor.check(row)
    monitor.start_anew()
    assert [alarm for row in rows[50:] for alarm in monitor.check(row)] == []


def test_the_noise_is_that_of_the_difference_of_two_means():
    rows = [{"x": value} for value in (1.0, 3.0, 100.0, 4.0, 8.0)]
    found = change(rows, "x", 2)
    # means 2 and 6; variances (n - 1) 2 and 8; standard error sqrt(2 / 2 + 8 / 2)
    assert (found.before, found.after) == (2.0, 6.0) and found.noise == pytest.approx(5**0.5)
    assert change(rows, "x", 3) is None and change(rows, "y", 2) is None


def test_a_window_of_one_is_refused():
    with pytest.raises(ValueError, match="^alarm_window: .*got 1"):
        HealthMonitor(1)
