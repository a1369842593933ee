"""Runs a launcher of several processes so that signals reach these.

python src/training/process_launcher.py deepspeed --num_gpus 2 --module keju.train_sft ...

DeepSpeed's launcher, told to stop, leaves the processes of a run behind, or kills them after 30 seconds. Here signals
go to them alone: they save and end, then the launcher ends, with their exit code. It is run as a file: importing keju
takes seconds, and nothing of it is needed here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import psutil


def main() -> None:
    # In a session of its own: a terminal that is closed would end it, and it the processes in the middle of saving.
    launcher = subprocess.Popen(sys.argv[1:], start_new_session=True)

    def hand_on(signum, frame) -> None:
        for process in psutil.Process(launcher.pid).children(recursive=True):
            try:
                if any(part.startswith("--local_rank=") for part in process.cmdline()):
                    process.send_signal(signum)
            except psutil.Error:  # it has ended meanwhile
                continue

    def interrupt(signum, frame) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signum)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    signal.signal(signal.SIGINT, interrupt)
    code = launcher.wait()
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
