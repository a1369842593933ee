"""Runs a launcher of several processes so that signals reach these.

python src/training/process_launcher.py deepspeed --num_gpus 2 --module keju.train_sft ...

DeepSpeed's launcher, told to stop, leaves the processes of a run behind, or kills them after 30 seconds. Here SIGTERM
goes to them alone: they save and end, then the launcher ends, with their exit code. It is run as a file: importing keju
takes seconds, and nothing of it is needed here.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil


def main() -> None:
    launcher = subprocess.Popen(sys.argv[1:])

    def hand_on(signum, frame) -> None:
        for process in psutil.Process(launcher.pid).children(recursive=True):
            try:
                if any(part.startswith("--local_rank=") for part in process.cmdline()):
                    process.send_signal(signum)
            except psutil.Error:  # it has ended meanwhile
                continue

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of the terminal's processes by itself
    code = launcher.wait()
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
