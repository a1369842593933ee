"""Signals that ask a run to end, as schedulers send them before a machine goes and terminals when they are closed: a
run saves a checkpoint at the end of its step and ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from keju.training.processes import is_main_process, sum_figures

# Slurm sends SIGTERM or what --signal names, mostly SIGUSR1; Grid Engine SIGUSR1, SIGUSR2 or SIGXCPU; LSF SIGUSR2; a
# closed terminal SIGHUP. process_launcher.py hands the same on to the processes of a run.
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Stopped(Exception):
    """A run that was asked to stop has saved `checkpoint` and ends."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by {_Signals.asked or 'a signal'} after step {step}; "
            f"--resume_from_checkpoint auto goes on from {checkpoint}"
        )


class _Signals:
    heard: bool = False  # somebody will look at `asked`
    asked: str = ""  # the signal's name
    is_stopping: bool = False  # what `stop_asked` has said last


def handle_signals() -> None:
    """From now on each of SIGNALS interrupts the process, or, inside `stopping_gracefully`, asks the run to stop. One
    that is ignored, as SIGHUP under nohup, stays so."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(signum, frame) -> None:
    name = signal.Signals(signum).name
    if not _Signals.heard or _Signals.asked:  # asked twice: at once
        raise KeyboardInterrupt(name)
    _Signals.asked = name
    if is_main_process():
        print(f"{name}: saving a checkpoint after this step (a second signal stops at once)", file=sys.stderr)


@contextmanager
def stopping_gracefully() -> Iterator[None]:
    """Inside, a signal does no more than make `stop_asked` true."""
    _Signals.heard, _Signals.asked, _Signals.is_stopping = True, "", False
    try:
        yield
    finally:
        _Signals.heard = False


def stop_asked(device: torch.device) -> bool:
    """Whether any process of the run was asked to stop; all must call, once a step."""
    asked = sum_figures({"asked": float(bool(_Signals.asked))}, device)["asked"]
    _Signals.is_stopping = bool(asked)
    return _Signals.is_stopping


def is_stopping() -> bool:
    """Whether the run ends because `stop_asked` has said so."""
    return _Signals.is_stopping
