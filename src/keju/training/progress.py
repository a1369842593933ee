"""Progress bars with loss, tokens/s and time left; on a terminal, and as lines in a pipe."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.cells import chop_cells
from transformers import TrainerCallback

from keju.training.crash import NonFiniteLoss
from keju.training.processes import is_main_process
from keju.training.run_folder import RunFolder, current_run
from keju.training.stopping import stop_asked
from keju.training.tee import CLEAR_LINE, Tee
from keju.training.terminal import fits, visible

Item = TypeVar("Item")

BAR_WIDTH = 16
REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0  # between two lines where there is no terminal to draw on, and in the log


class Progress:
    """A bar over `total` units (None: unknown). Only the main process shows it.

    with Progress(len(rows), "generate", unit="rows") as bar:
        bar.advance(8, tokens=512, reward=0.4)
    """

    def __init__(self, total: int | None, title: str, *, unit: str = "rows", done: int = 0):
        self.total = total
        self.title = visible(title)
        self.unit = unit
        self.done = self._done_before = done
        self.tokens = 0
        self.shown: dict[str, Any] = {}
        self._start = self._last_draw = self._last_line = time.monotonic()
        self._visible = is_main_process()

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._wipe()
        if self._visible:
            # Through sys.stderr, so that the line is also in the log.
            print(self.line(finished=error is None), file=sys.stderr)

    def advance(self, n: int = 1, *, tokens: int = 0, **shown: Any) -> None:
        """`n` more units are done, which held `tokens` tokens. `shown` stands behind the bar until replaced."""
        self.done += n
        self.tokens += tokens
        self.show(**shown)

    def rate(self) -> float:
        """Units a second since the bar began."""
        return (self.done - self._done_before) / max(time.monotonic() - self._start, 1e-9)

    def show(self, **shown: Any) -> None:
        self.shown |= shown
        now = time.monotonic()
        if now - self._last_draw >= REDRAW_SECONDS:
            self._last_draw = now
            self._draw()
        if self._visible and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            if not self._terminal().isatty():
                print(self.line(), file=sys.stderr)
            elif (run := current_run()) is not None:
                run.write_log(self.line())

    def line(self, *, finished: bool = False) -> str:
        """The state in words, without the bar."""
        seconds = time.monotonic() - self._start
        parts = [f"{self.title}: {self._count()} {self.unit} in {clock(seconds)}"]
        if finished and not self.tokens and seconds >= 1:
            parts.append(f"{compact((self.done - self._done_before) / seconds)} {self.unit}/s")
        parts += self._figures(seconds)
        if not finished and self._left(seconds) is not None:
            parts.append(f"{clock(self._left(seconds))} left")
        return ", ".join(parts)

    def _count(self) -> str:
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"

    def _left(self, seconds: float) -> float | None:
        progressed = self.done - self._done_before
        if self.total is None or not progressed:
            return None
        return max(0.0, (self.total - self.done) * seconds / progressed)

    def _figures(self, seconds: float) -> list[str]:
        figures = [f"{name} {figure(value)}" for name, value in self.shown.items() if name != "tokens_per_second"]
        speed = self.shown.get("tokens_per_second") or (self.tokens / seconds if self.tokens and seconds > 0 else None)
        return figures + ([f"{compact(speed)} tokens/s"] if speed else [])

    def _draw(self) -> None:
        terminal = self._terminal()
        if not self._visible or not terminal.isatty():
            return
        seconds = time.monotonic() - self._start
        text = f"{self.title} {self._count()} {self.unit}"
        if self.total:
            share = min(1.0, self.done / self.total)
            full, empty = "█░" if fits("█░", terminal) else "#."
            filled = round(share * BAR_WIDTH)
            text = f"{self.title} {full * filled}{empty * (BAR_WIDTH - filled)} {share:4.0%} {self._count()}"
        left = self._left(seconds)
        text = "  ".join([text, clock(seconds) if left is None else f"{clock(left)} left", *self._figures(seconds)])
        # A bar that wraps could not be wiped.
        room = max(1, shutil.get_terminal_size().columns - 1)  # in cells, of which a Chinese character takes two
        self._write(CLEAR_LINE + chop_cells(text, room)[0])
        Tee.bar_is_drawn = True

    def _wipe(self) -> None:
        if Tee.bar_is_drawn:
            self._write(CLEAR_LINE)
            Tee.bar_is_drawn = False

    @staticmethod
    def _write(text: str) -> None:
        if isinstance(sys.stderr, Tee):
            sys.stderr.show(text)
        else:
            sys.stderr.write(text)
        sys.stderr.flush()

    @staticmethod
    def _terminal():
        return sys.stderr.terminal if isinstance(sys.stderr, Tee) else sys.stderr


def track(items: Iterable[Item], title: str, *, unit: str = "rows") -> Iterator[Item]:
    """Hands on `items` under a progress bar."""
    with Progress(len(items) if isinstance(items, Sized) else None, title, unit=unit) as bar:
        for item in items:
            yield item
            bar.advance()


class RunCallback(TrainerCallback):
    """Progress bar, metrics.jsonl and the stop at a loss of NaN, for any transformers.Trainer.

    Rows of metrics.jsonl: what the trainer logs, "step", "elapsed" (seconds of training, evaluation and saving left
    out) and, when the logs hold "num_tokens" (useful tokens so far), "tokens_per_second" since the row before.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.bar: Progress | None = None
        self._elapsed = 0.0
        self._mark = 0.0
        self._last_row = (0, 0.0)  # num_tokens, elapsed

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self.folder.is_main:
            warn_of_warmup(args.get_warmup_steps(state.max_steps), state.max_steps)
        self.bar = Progress(state.max_steps, self.folder.stage, unit="steps", done=state.global_step)
        self.bar.__enter__()
        self._mark = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.folder.begin()
        self._tick()
        self.bar.advance()
        if state.global_step < state.max_steps and stop_asked(args.device):
            control.should_save = control.should_training_stop = True
        # The last loss is a figure of the summary, wherever --logging_steps falls.
        control.should_log |= state.global_step >= state.max_steps

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self._mark = time.monotonic()

    on_save = on_evaluate

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not logs or "train_runtime" in logs:  # the last call sums up the run; summary.json does that
            return
        row = {"step": state.global_step, **{name: value for name, value in logs.items() if name != "total_flos"}}
        if "loss" in logs:
            self._add_speed(row)
        self.folder.log_metrics(row)
        if "loss" not in logs:
            if self.folder.is_main:
                print(f"step {state.global_step}: {describe(logs)}")
            return
        self.folder.write_log(f"step {state.global_step}/{state.max_steps}: {describe(row)}")
        if not math.isfinite(logs["loss"]):
            raise NonFiniteLoss(state.global_step)
        if self.bar is not None:
            speed = {"tokens_per_second": row["tokens_per_second"]} if "tokens_per_second" in row else {}
            self.bar.show(loss=logs["loss"], **speed)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.__exit__(None, None, None)
        self.bar = None

    def _tick(self) -> None:
        now = time.monotonic()
        self._elapsed += now - self._mark
        self._mark = now

    def _add_speed(self, row: dict[str, Any]) -> None:
        row["elapsed"] = round(self._elapsed, 3)
        if "num_tokens" in row:
            tokens, seconds = row["num_tokens"] - self._last_row[0], self._elapsed - self._last_row[1]
            if tokens > 0 and seconds > 0:
                row["tokens_per_second"] = round(tokens / seconds, 1)
            self._last_row = (row["num_tokens"], self._elapsed)


def warn_of_warmup(warmup_steps: float, num_steps: int) -> None:
    """Says so where the learning rate does not come to its peak."""
    if warmup_steps > num_steps:
        print(
            f"warning: --warmup_steps {warmup_steps:g}: the run has only {num_steps} steps, in which the learning rate "
            f"comes to {num_steps / warmup_steps:.0%} of its peak",
            file=sys.stderr,
        )


def describe(row: dict[str, Any]) -> str:
    """A row of metrics as people read it."""
    hidden = ("step", "epoch", "elapsed", "_runtime", "_per_second")
    shown = {name: value for name, value in row.items() if not name.endswith(hidden) or name == "tokens_per_second"}
    return ", ".join(f"{name} {figure(value)}" for name, value in shown.items())


def figure(value: Any) -> str:
    """A number in few characters: 2.314, 1.00e-05, 12345."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or not math.isfinite(value) or value == 0:
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def compact(value: float) -> str:
    """1234 -> 1.23k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """75 -> 1:15; hours only where there are some."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
