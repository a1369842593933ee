"""A health monitor: alarms while a policy is trained, read off the metrics of its steps.

A reward model is easier to fool than to please, so that a rising reward alone says little (Gao et al. 2023, "Scaling
laws for reward model overoptimization"). Each rule compares the last `window` steps with the first `window` steps of
the run (or since it was rolled back); none sees anything but the rows of metrics.jsonl, so that a resumed run judges as
one that was not interrupted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from keju.errors import UserError

Row = dict[str, float]


class Alarm(NamedTuple):
    step: int
    name: str
    message: str


class Change(NamedTuple):
    """A figure in the first and in the last window; `noise`: standard error of the difference of the two means."""

    before: float
    after: float
    noise: float

    def rose(self) -> bool:
        return self.after - self.before > SIGMAS * self.noise

    def fell(self) -> bool:
        return self.before - self.after > SIGMAS * self.noise


SIGMAS = 3.0
MAX_REPETITION = 0.5  # share of the pairs of neighbours in a response that stood there before


def change(rows: Sequence[Row], name: str, window: int) -> Change | None:
    """None where a window is not full, or a step lacks the figure."""
    if len(rows) < 2 * window or any(name not in row for row in (*rows[:window], *rows[-window:])):
        return None
    first, last = ([row[name] for row in part] for part in (rows[:window], rows[-window:]))
    before, after = sum(first) / window, sum(last) / window
    squares = sum((x - before) ** 2 for x in first) + sum((x - after) ** 2 for x in last)
    return Change(before, after, math.sqrt(squares / max(window - 1, 1) / window))


# -- rules: a message, or None ---------------------------------------------------------------------------------------


def reward_is_fooled(rows: Sequence[Row], window: int) -> str | None:
    """The reward rises while somebody who does not train the policy sees it get worse."""
    reward = change(rows, "reward", window)
    if reward is None or not reward.rose():
        return None
    for name, judge in (("judge", "the held-out judge"), ("ref_logprob", "the reference model (log-prob a token)")):
        seen = change(rows, name, window)
        if seen is None:
            continue
        # The reference's opinion moves with any learning; a held-out judge overrules it, where there is one.
        if seen.fell() and (name == "judge" or seen.before - seen.after > 0.25 * abs(seen.before)):
            return (
                f"the reward rises ({reward.before:.3g} -> {reward.after:.3g}) while {judge} falls "
                f"({seen.before:.3g} -> {seen.after:.3g}): the policy may be fooling the reward model"
            )
        return None
    return None


def length_runs_away(rows: Sequence[Row], window: int) -> str | None:
    length = change(rows, "response_length", window)
    if length is None or not (length.rose() or length.fell()) or length.before / 2 < length.after < 2 * length.before:
        return None
    return f"responses went from {length.before:.0f} to {length.after:.0f} tokens"


def text_repeats(rows: Sequence[Row], window: int) -> str | None:
    repetition = change(rows, "repetition", window)
    if repetition is not None and repetition.rose() and repetition.after > MAX_REPETITION:
        return f"{repetition.after:.0%} of a response repeats itself (at first {repetition.before:.0%})"
    distinct = change(rows, "distinct_2", window)
    if distinct is not None and distinct.fell() and distinct.after < distinct.before / 2:
        return f"responses become alike: distinct-2 fell from {distinct.before:.2f} to {distinct.after:.2f}"
    return None


def kl_runs_away(rows: Sequence[Row], window: int, limit: float) -> str | None:
    kl = [row["kl_per_token"] for row in rows[-window:] if "kl_per_token" in row]
    if len(kl) < window or sum(kl) / window <= limit:
        return None
    return f"the policy is {sum(kl) / window:.2f} nats a token away from its start (alarm above {limit:g})"


def ends_disappear(rows: Sequence[Row], window: int) -> str | None:
    finished = change(rows, "fraction_finished", window)
    if finished is None or not finished.fell() or finished.after > finished.before / 2:
        return None
    return f"responses stop ending by themselves: {finished.before:.0%} -> {finished.after:.0%}"


def entropy_collapses(rows: Sequence[Row], window: int) -> str | None:
    entropy = change(rows, "entropy", window)
    if entropy is None or not entropy.fell() or entropy.after > entropy.before / 5:
        return None
    return f"the policy has all but stopped exploring: entropy {entropy.before:.2f} -> {entropy.after:.2f} nats a token"


Rule = Callable[[Sequence[Row], int], str | None]


class HealthMonitor:
    """Checks each step; a rule that has fired is quiet for `window` steps.

    max_kl: nats a token to the reference. At 0.5 the policy's own tokens are e^0.5 = 1.6 times as likely to it, each.
    """

    def __init__(self, window: int, max_kl: float = 0.5) -> None:
        if window < 2:
            raise UserError(f"must be at least 2 steps, got {window}", option="alarm_window")
        self.window = window
        self.rules: dict[str, Rule] = {
            "reward_is_fooled": reward_is_fooled,
            "length_runs_away": length_runs_away,
            "text_repeats": text_repeats,
            "kl_runs_away": partial(kl_runs_away, limit=max_kl),
            "ends_disappear": ends_disappear,
            "entropy_collapses": entropy_collapses,
        }
        self.rows: list[Row] = []
        self.fired: dict[str, int] = {}

    def check(self, row: Row) -> list[Alarm]:
        """`row`: the metrics of a step, its "step" among them."""
        self.rows.append(row)
        alarms = list(self._alarms(int(row["step"])))
        self.fired |= {alarm.name: alarm.step for alarm in alarms}
        return alarms

    def _alarms(self, step: int) -> Iterator[Alarm]:
        for name, rule in self.rules.items():
            last = self.fired.get(name)
            if last is not None and step - last < self.window:
                continue
            message = rule(self.rows, self.window)
            if message is not None:
                yield Alarm(step, name, message)

    def start_anew(self) -> None:
        """After a rollback: what came before says nothing about what comes now."""
        self.rows.clear()
        self.fired.clear()
