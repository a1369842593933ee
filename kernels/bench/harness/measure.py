"""One case: first equality, then the providers' times in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from harness import equality
from harness.case import TRAINING, Absent, Case, Inputs, Provider, as_tuple, fresh, run
from harness.clock import Clock, Limits

# A pass that has taken this many seconds ends early, after MIN_ROUNDS at least: whole models are slow.
PATIENCE = 30.0
MIN_ROUNDS = 5
OUT_OF_MEMORY = "out of memory"


@dataclass
class Result:
    """One provider in one pass of a case. `problem` is why there are no figures: a provider whose results are wrong or
    which fails has no times. ms: the median of the rounds; ms_low and ms_high: their first and last deciles. ratio: its
    time over keju's. of_limit: the least time that the device's limits allow over the median."""

    op: str
    case: str
    dtype: str
    kind: str
    provider: str
    problem: str = ""
    error: float | None = None
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    rounds: int = 0
    peak_mib: float | None = None
    of_limit: float | None = None
    ratio: float | None = None
    tokens_per_s: float | None = None


@dataclass
class Report:
    """Results of a case; left_out: provider -> why it did not run; unchecked: why nothing was compared, or ""."""

    case: Case
    results: list[Result]
    left_out: dict[str, str]
    unchecked: str

    @property
    def failed(self) -> bool:
        """Running out of memory is a result, too, but not where it is the reference that does."""
        problems = {result.problem for result in self.results} - {"", OUT_OF_MEMORY}
        return bool(problems or self.unchecked)

    def as_json(self) -> dict[str, Any]:
        return {
            "left_out": self.left_out,
            "unchecked": self.unchecked,
            "results": [asdict(result) for result in self.results],
        }


def attempt(function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """(the value, "") or (None, what went wrong): the exception, which holds on to tensors, is gone by then."""
    try:
        return function(*args), ""
    except torch.OutOfMemoryError:
        problem = OUT_OF_MEMORY
    except Exception as error:  # one provider's failure is a line in the table, and no end to the others
        first, *_ = [*str(error).strip().splitlines(), ""]
        problem = f"failed: {type(error).__name__}: {first}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, problem


def measure(op: str, case: Case, clock: Clock, limits: Limits, rounds: int) -> Report:
    """Raises whatever building the case raises."""
    inputs, providers = case.build()
    left_out = {name: provider.reason for name, provider in providers.items() if isinstance(provider, Absent)}
    present = {name: provider for name, provider in providers.items() if isinstance(provider, Provider)}
    errors, problems, unchecked = _check(case, present, inputs)
    results = []
    for kind in case.work:
        sound = {name: provider for name, provider in present.items() if not problems[name]}
        timed = _time(case, sound, inputs, kind, clock, rounds)
        for name in present:
            result = Result(op, case.name, _name(case.dtype), kind, name, problems[name], errors[name])
            if not result.problem:
                seconds, peak, result.problem = timed[name]
                _fill(result, case, seconds, peak, limits)
            results.append(result)
    _compare_with_ours(results)
    return Report(case, results, left_out, unchecked)


def _check(case: Case, providers: dict[str, Provider], inputs: Inputs) -> tuple[dict, dict[str, str], str]:
    """Each provider's error (None where there is nothing to compare with), what is wrong with it, why none has one."""
    wanted, unchecked = attempt(equality.expected, case, providers[case.reference], inputs)
    errors, problems = {}, {}
    for name, provider in providers.items():
        found, problems[name] = attempt(equality.figures, case, provider, inputs)
        errors[name] = equality.error(found, wanted) if found is not None and wanted is not None else None
        limit = equality.TOLERANCE[case.dtype]
        if errors[name] is not None and not errors[name] <= limit:
            problems[name] = (
                f"disagrees with {case.reference}: error {errors[name]:.1e}, at most {limit:.0e} is allowed"
            )
    return errors, problems, unchecked


def _time(case: Case, providers: dict[str, Provider], inputs: Inputs, kind: str, clock: Clock, rounds: int) -> dict:
    """name -> (seconds of each round, peak bytes, what went wrong). Each provider has one turn a round."""
    calls, peaks, problems = {}, {}, {}
    times = {name: [] for name in providers}
    for name, provider in providers.items():
        calls[name], problems[name] = attempt(_prepare, provider, inputs, kind)
        if not problems[name]:
            # The first call compiles: it is the second that needs what all later ones need.
            for _ in range(2):
                peaks[name], problems[name] = attempt(calls[name], clock.peak_bytes)
    start = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - start > PATIENCE:
            break
        for name in providers:
            if not problems[name]:
                seconds, problems[name] = attempt(calls[name], clock.seconds)
                times[name].append(seconds)
    return {name: (times[name], peaks.get(name), problems[name]) for name in providers}


def _prepare(provider: Provider, inputs: Inputs, kind: str) -> Callable[[Callable], Any]:
    """call(read) -> read(a function that makes the pass once), on copies that are made before."""
    own = fresh(provider.pack(**inputs)) if provider.pack else inputs
    upstream = []
    if kind == TRAINING:
        with torch.no_grad():
            upstream = [torch.randn_like(x) for x in as_tuple(provider.run(**fresh(own)))]

    def call(read: Callable[[Callable[[], Any]], Any]) -> Any:
        arguments, gradients = fresh(own), [x.clone() for x in upstream]
        return read(lambda: run(provider, arguments, kind, gradients))

    return call


def _fill(result: Result, case: Case, seconds: list[float], peak: int | None, limits: Limits) -> None:
    if result.problem or not seconds:
        return
    median = statistics.median(seconds)
    low, *_, high = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else (median, median)
    result.ms, result.ms_low, result.ms_high = median * 1e3, low * 1e3, high * 1e3
    result.rounds = len(seconds)
    result.peak_mib = None if peak is None else peak / 2**20
    result.of_limit = limits.least_seconds(case.work[result.kind]) / median
    result.tokens_per_s = case.tokens / median if case.tokens else None


def _compare_with_ours(results: list[Result]) -> None:
    ours = {result.kind: result.ms for result in results if result.provider == "keju"}
    for result in results:
        if result.ms is not None and ours.get(result.kind):
            result.ratio = result.ms / ours[result.kind]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
