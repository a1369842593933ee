"""Runs that are killed at random moments, in the middle of saving, too, and end as one that was not.

python tests/bench/kill.py --stage rlhf --kills 10

A tiny run of the stage goes through once; then the same run is killed (SIGKILL) so many times, and resumed each time
with --resume_from_checkpoint auto. Kills come at a random moment of a save, of a step, of the start of the process,
between the last step and the end, in the final save, in the final evaluation, and of a run that replaces a finished one
(--overwrite_output_dir): before it has begun, when the old run must be whole, and after that. The run ends inside a
pass over its records. Weights must be bit-equal to those of the unbroken run, and so must the rows of metrics.jsonl.
The last line is JSON: {"name", "kills", "bit_equal", "lost_steps_max"}; steps are lost that came after the last
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from killed_runs import FAMILIES, SAVE_STEPS, STAGES, TIMING, Series, make_inputs
from safetensors.torch import load_file

from keju.training.checkpoints import checkpoints
from keju.training.run_folder import BESIDE

AUTO = ("--resume_from_checkpoint", "auto")


@dataclass
class Pace:
    """Seconds of the unbroken run: up to its first step, of a step with its share of saving, of a save, and from its
    last step to the final save, in that, and from then on: evaluation and pictures."""

    start: float
    step: float
    save: float
    end: float
    final_save: float
    evaluation: float


@dataclass
class Outcome:
    bit_equal: bool
    rows_equal: bool
    kills: int = 0
    kills_in_save: int = 0
    lost_steps_max: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    old_run_kept: bool = True


@contextmanager
def started(argv: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """A run in a process group of its own, which is gone when the block ends."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher and for every process that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check_finished(process: subprocess.Popen, run: Path, log: Path) -> None:
    """Raises RuntimeError unless the run went through to its end; a SIGTERM from elsewhere ends one with 0, too."""
    if process.returncode or not (run / "summary.json").is_file():
        said = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{run} did not finish (exit code {process.returncode}); see {log}:\n{said}")


def logged_step(run: Path, since: int = 0) -> int:
    """The last step in metrics.jsonl, if that was written to after `since` (ns); 0 otherwise."""
    path = run / "metrics.jsonl"
    try:
        if path.stat().st_mtime_ns < since:
            return 0  # of the process before
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return 0
    return next((json.loads(line)["step"] for line in reversed(lines) if line[:1] == "{" and line[-1:] == "}"), 0)


def is_saving(run: Path, since: int = 0) -> bool:
    """Whether a checkpoint that was begun after `since` (ns) is not finished."""
    for aside in run.glob(".checkpoint-*"):
        try:
            if aside.stat().st_mtime_ns >= since:
                return True
        except FileNotFoundError:
            continue  # finished just now
    return False


def checkpoint_step(run: Path) -> int:
    return max((step for step, _ in checkpoints(run)), default=0)


def is_saving_model(run: Path, since: int = 0) -> bool:
    """Whether the model that the run ends with has begun to be written after `since` (ns)."""
    return any(
        _is_newer(path, since)
        for pattern in (".files.*.part", "config.json", "adapter_config.json", "*.safetensors")
        for path in run.glob(pattern)
    )


def has_saved_model(run: Path, since: int = 0) -> bool:
    """Whether that is over, as far as the first model goes: its tokenizer is written last."""
    return _is_newer(run / "tokenizer_config.json", since)


def _is_newer(path: Path, since: int) -> bool:
    try:
        return path.stat().st_mtime_ns >= since
    except FileNotFoundError:
        return False


def watch(argv: list[str], run: Path, log: Path) -> Pace:
    """One run without a kill, and how long its parts took."""
    saves, saving_since, first, last, step, save, saved = [], None, None, None, 0, None, None
    begin = time.perf_counter()
    with started(argv, log) as process:
        while process.poll() is None:
            now = time.perf_counter()
            if is_saving(run) != (saving_since is not None):
                if saving_since is not None:
                    saves.append(now - saving_since)
                saving_since = now if saving_since is None else None
            if (found := logged_step(run)) > step:
                step, last = found, now
                first = first or now
            save = save or (now if is_saving_model(run) else None)
            saved = saved or (now if has_saved_model(run) else None)
            time.sleep(0.001)
        end = time.perf_counter()
    check_finished(process, run, log)
    saved = saved or end
    save = save or saved
    return Pace(first - begin, (last - first) / step, statistics.median(saves), save - last, saved - save, end - saved)


def kill_once(
    process: subprocess.Popen,
    run: Path,
    when: str,
    step: float,
    since: int,
    pace: Pace,
    rng: random.Random,
    haste: float = 1.0,
) -> bool:
    """Kills the run that began at `since` in step `step` (or as `when` says); False when it ended before that.

    haste: the share of the usual delay after the moment that was waited for.
    """

    def wait_for(condition) -> bool:
        while process.poll() is None and not condition():
            time.sleep(0.001)
        return process.returncode is None

    def next_step() -> bool:
        return logged_step(run, since) >= max(step, checkpoint_before + 1)

    def over() -> bool:
        """Whether the moment has passed: a start may be faster than that of the unbroken run."""
        if when == "before it replaces":
            return not (run / BESIDE).is_dir()
        return when == "start" and logged_step(run, since) > checkpoint_before

    checkpoint_before = checkpoint_step(run)
    moments = {
        "start": (lambda: True, pace.start),
        "step": (next_step, pace.step),
        "save": (lambda: next_step() and is_saving(run, since), 0.8 * pace.save),
        "end": (lambda: logged_step(run, since) >= step, pace.end),
        "final save": (lambda: is_saving_model(run, since), pace.final_save),
        "final evaluation": (lambda: has_saved_model(run, since), 0.9 * pace.evaluation),
        "before it replaces": (lambda: (run / BESIDE).is_dir(), 0.3 * pace.start),
        "after it replaced": (lambda: logged_step(run, since) >= step, pace.step),
    }
    condition, delay = moments[when]
    if not wait_for(condition):
        return False
    until = time.perf_counter() + rng.uniform(0, haste * delay)
    while time.perf_counter() < until and not over():
        time.sleep(0.001)
    if process.poll() is not None:
        return False
    kill(process)
    return True


def plan_kills(kills: int, steps: int, rng: random.Random) -> list[tuple[str, float]]:
    """(moment, step) of each kill, in the order of the run; 4 kills leave out what more of them reach."""
    late = ["end", "final save", "final evaluation"] if kills > 4 else ["final evaluation"]
    replacing = ["before it replaces", "after it replaced"] if kills > 4 else []
    kinds = ["save", "step", "save", "start"]
    early = sorted(rng.uniform(1, steps - SAVE_STEPS - 1) for _ in range(kills - len(late) - len(replacing)))
    plan = [(kinds[number % len(kinds)], moment) for number, moment in enumerate(early)]
    return [*plan, *((kind, steps) for kind in late), *((kind, rng.uniform(1, steps - 2)) for kind in replacing)]


def survive(series: Series, kills: int, seed: int = 0, say=print) -> Outcome:
    """The run of `series` unbroken, and killed so many times; what that came to."""
    rng = random.Random(seed)
    folder, log = series.folder, series.folder / "log"
    whole, broken, replaced = folder / "whole", folder / "killed", folder / "replaced"
    pace = watch(series.command(whole), whole, log)
    steps = logged_step(whole)
    say(f"the unbroken run: {steps} steps, {pace}")
    outcome = Outcome(bit_equal=True, rows_equal=True)

    def struck(run: Path, flags: Sequence[str], when: str, step: float) -> int:
        """Starts the run until a kill hits it; when that start was (ns)."""
        for attempt in range(6):
            since = time.time_ns()
            with started(series.command(run, *flags), log) as process:
                if kill_once(process, run, when, step, since, pace, rng, haste=0.5**attempt):
                    break
            check_finished(process, run, log)
            if when in ("step", "save"):
                when, step = "end", steps  # it got through: its end is what is left of it
        else:
            raise RuntimeError(f"no kill hit {run}: {when}")
        outcome.kills += 1
        outcome.moments[when] += 1
        in_save = is_saving(run, since)
        outcome.kills_in_save += in_save
        where = " in the middle of a save" if in_save else ""
        say(f"kill {outcome.kills} ({when}){where}: step {logged_step(run)}, checkpoint {checkpoint_step(run)}")
        return since

    def finish(run: Path) -> None:
        with started(series.command(run, *AUTO), log) as process:
            process.wait()
        check_finished(process, run, log)
        outcome.bit_equal &= weights(whole) == weights(run)
        outcome.rows_equal &= rows(whole) == rows(run)

    for when, step in plan_kills(kills, steps, rng):
        if when == "before it replaces":
            for _ in range(20):
                shutil.rmtree(replaced, ignore_errors=True)
                shutil.copytree(whole, replaced)
                struck(replaced, ["--overwrite_output_dir"], when, step)
                # Not too late, nor just while the old one goes, its summary first
                if (replaced / BESIDE).is_dir() and (replaced / "summary.json").is_file():
                    break
            else:
                raise RuntimeError("no kill came before the old run was replaced")
            outcome.old_run_kept &= contents(replaced) == contents(whole)
        elif when == "after it replaced":
            since = struck(replaced, ["--overwrite_output_dir"], when, step)
            outcome.old_run_kept &= all(path.stat().st_mtime_ns >= since for path in replaced.rglob("*"))
            finish(replaced)
        else:
            struck(broken, AUTO, when, step)
            lost = logged_step(broken) - checkpoint_step(broken)
            outcome.lost_steps_max = max(outcome.lost_steps_max, lost)
    finish(broken)
    return outcome


def contents(run: Path) -> dict[Path, bytes]:
    """Every file of a run, but for what another one puts beside them."""
    files = (path for path in run.rglob("*") if path.is_file() and BESIDE not in path.relative_to(run).parts)
    return {path.relative_to(run): path.read_bytes() for path in files}


def weights(run: Path) -> dict[str, bytes]:
    """Every weight file of the finished run, checkpoints left out."""
    files = [path for path in run.rglob("*.safetensors") if "checkpoint-" not in str(path.relative_to(run))]
    return {
        f"{path.relative_to(run)}/{name}": tensor.numpy().tobytes()
        for path in files
        for name, tensor in load_file(path).items()
    }


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=sorted(STAGES), default="rlhf")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=29)
    parser.add_argument("--epochs", type=float, help="as long as that, in place of --steps")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llama")
    parser.add_argument("--peft", action="store_true", help="adapters; rlhf: all four models over one base")
    parser.add_argument("--processes", type=int, default=1, help="more than one: ZeRO-2 through the launcher")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    make_inputs(folder, args.family)
    series = Series(args.stage, folder, args.steps, args.peft, args.processes, args.epochs, evaluated=True)
    outcome = survive(series, args.kills, args.seed, say=lambda line: print(line, flush=True))
    print(
        f"{outcome.kills} kills: {outcome.kills_in_save} in the middle of a save; meant for {dict(outcome.moments)}; "
        f"the rows of metrics.jsonl are {'equal' if outcome.rows_equal else 'NOT equal'}; "
        f"{'' if outcome.old_run_kept else 'a run that was to be replaced was NOT whole; '}"
        f"{time.perf_counter() - start:.0f} s"
    )
    name = " ".join(
        ["kill", args.stage, args.family]
        + ([f"{args.epochs:g} epochs"] if args.epochs else [])
        + ["peft"] * args.peft
        + [f"{args.processes} processes, ZeRO-2"] * (args.processes > 1)
    )
    report = {
        "name": name,
        "kills": outcome.kills,
        "bit_equal": outcome.bit_equal,
        "lost_steps_max": outcome.lost_steps_max,
    }
    survived = outcome.bit_equal and outcome.rows_equal and outcome.old_run_kept
    if survived:
        shutil.rmtree(folder)
    else:
        print(f"the runs are kept in {folder}")
    print(json.dumps(report))
    sys.exit(not survived)


if __name__ == "__main__":
    main()
