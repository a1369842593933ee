"""Functions for processes that a test starts; they import nothing, so that their processes are there at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path


def fails_at_five(number: int) -> int:
    if number == 5:
        raise ArithmeticError("five")
    return number * number


def dies(number: int) -> int:
    sys.exit(3) if multiprocessing.parent_process() and number else None


def has_no_memory(number: int) -> int:
    return len(bytearray(1 << 62)) if number == 5 else number


def where(number: int) -> tuple[int, int]:
    time.sleep(0.02)
    return number, os.getpid()


def sleeps_but_for_the_first(item: tuple[Path, int]) -> int:
    folder, number = item
    if number:
        (folder / f"begun{number}").touch()
        time.sleep(60)
        (folder / f"ended{number}").touch()
    while not any(folder.iterdir()):  # until another process is in the middle of its item
        time.sleep(0.05)
    return number
