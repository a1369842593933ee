from __future__ import annotations

import errno
import io
import logging
import sys

import pytest

from keju.training.tee import LogFile, Tee, TerminalLog


@pytest.fixture
def log(tmp_path):
    file = LogFile(tmp_path / "x.log")
    yield file
    file.close()


def test_the_log_has_lines_without_bars_and_colours(log):
    terminal = io.StringIO()
    tee = Tee(terminal, log)
    tee.write("plain\n\x1b[31mred\x1b[0m\n10%\r50%\rdone\nwindows\r\nunfin")
    tee.write("ished")
    tee.finish()
    assert log.path.read_text() == "plain\nred\ndone\nwindows\nunfinished\n"
    assert terminal.getvalue().startswith("plain\n\x1b[31mred")


def test_a_bar_is_wiped_before_other_output(log):
    terminal = io.StringIO()
    Tee.bar_is_drawn = True
    Tee(terminal, log).write("text\n")
    assert terminal.getvalue() == "\r\x1b[Ktext\n" and not Tee.bar_is_drawn


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])  # a terminal that was closed, a reader that has gone
def test_without_a_terminal_the_log_goes_on(log, number):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(number, "gone")

        flush = write

    tee = Tee(Gone(), log)
    tee.write("one\n")
    tee.flush()
    tee.write("two\n")
    assert log.path.read_text() == "one\ntwo\n"


def test_a_full_disk_stops_the_log_but_not_the_run(log, capsys, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    log._file = Full()
    errors = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", errors)
    tee = Tee(io.StringIO(), log)
    tee.write("a\nb\n")
    assert errors.getvalue().count("can no longer be written: No space left on device") == 1
    log.close()


def test_loggers_made_before_go_to_the_log_and_back(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger = logging.getLogger("keju.test_tee")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    terminal_log = TerminalLog(tmp_path / "x.log")
    logger.warning("heard")
    terminal_log.close()
    logger.warning("after")
    logger.removeHandler(handler)
    assert (tmp_path / "x.log").read_text() == "heard\n"
    assert stream.getvalue() == "heard\nafter\n" and sys.stderr is stream and handler.stream is stream
