from __future__ import annotations

import signal

import pytest
import torch

from keju.training.stopping import SIGNALS, handle_signals, stop_asked, stopping_gracefully

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}  # nohup ignores one of them
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_asks_a_run_to_stop_and_interrupts_anything_else(number, capsys):
    handle_signals()
    with pytest.raises(KeyboardInterrupt, match=number.name):
        signal.raise_signal(number)
    with stopping_gracefully():
        assert not stop_asked(CPU)
        signal.raise_signal(number)
        assert stop_asked(CPU) and f"{number.name}: saving a checkpoint" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):  # asked twice: at once
            signal.raise_signal(number)
    with stopping_gracefully():
        assert not stop_asked(CPU)


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    handle_signals()
    with stopping_gracefully():
        signal.raise_signal(signal.SIGHUP)
        assert not stop_asked(CPU)
