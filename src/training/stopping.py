"""SIGTERM, as schedulers send it before a machine goes: a run saves a checkpoint at the end of its step and ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from keju.training.processes import process_index, sum_figures


class Stopped(Exception):
    """A run that was asked to stop has saved `checkpoint` and ends."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by SIGTERM after step {step}; --resume_from_checkpoint auto goes on from {checkpoint}"
        )


class _Signals:
    heard: bool = False  # somebody will look at `asked`
    asked: bool = False


def handle_sigterm() -> None:
    """From now on SIGTERM interrupts the process, or, inside `stopping_gracefully`, asks the run to stop."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(signum, frame) -> None:
    if not _Signals.heard or _Signals.asked:  # asked twice: at once
        raise KeyboardInterrupt(signal.Signals(signum).name)
    _Signals.asked = True
    if process_index() == 0:
        print("SIGTERM: saving a checkpoint after this step (a second one stops at once)", file=sys.stderr)


@contextmanager
def stopping_gracefully() -> Iterator[None]:
    """Inside, SIGTERM does no more than make `stop_asked` true."""
    _Signals.heard, _Signals.asked = True, False
    try:
        yield
    finally:
        _Signals.heard = False


def stop_asked(device: torch.device) -> bool:
    """Whether any process of the run was asked to stop; all must call, once a step."""
    return bool(sum_figures({"asked": float(_Signals.asked)}, device)["asked"])
