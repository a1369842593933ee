"""Runs a launcher of several processes so that signals reach these.

python src/keju/training/process_launcher.py deepspeed --num_gpus 2 --module keju.train_sft ...

DeepSpeed's launcher, told to stop, leaves the processes of a run behind, or kills them after 30 seconds. Here signals
go to them alone: they save and end, then the launcher ends, with their exit code. It is run as a file: importing keju
takes seconds, and nothing of it is needed here.

What the launcher would answer with a traceback, or not notice, is refused before it starts, in one line and with exit
code 2: a file of hosts that is not there or says something else, and a port that another program has.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil

HOST = re.compile(r"(?P<name>[^\s=]+)\s+slots=(?P<slots>\d+)")


class Refused(Exception):
    """What is wrong, in one line."""


def main() -> None:
    try:
        check(sys.argv[2:])
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)
    # In a session of its own: a terminal that is closed would end it, and it the processes in the middle of saving.
    launcher = subprocess.Popen(sys.argv[1:], start_new_session=True)

    def hand_on(signum, frame=None) -> bool:
        """To the processes of the run, if there are any yet."""
        reached = False
        for process in psutil.Process(launcher.pid).children(recursive=True):
            try:
                if any(part.startswith("--local_rank=") for part in process.cmdline()):
                    process.send_signal(signum)
                    reached = True
            except psutil.Error:  # it has ended meanwhile
                continue
        return reached

    interrupts = 0

    def interrupt(signum, frame) -> None:
        # The first goes to the processes alone: from the launcher, too, it would come to them twice, and break off the
        # line that they say
        nonlocal interrupts
        interrupts += 1
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if interrupts > 1 or not hand_on(signum):
                os.killpg(launcher.pid, signum)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, hand_on)
    signal.signal(signal.SIGINT, interrupt)
    code = launcher.wait()
    sys.exit(code if code >= 0 else 128 - code)


def check(flags: list[str]) -> None:
    """Raises Refused for flags of the launcher (those before --module) that it would come to grief over."""
    flags = flags[: flags.index("--module")] if "--module" in flags else flags
    given = dict(zip(flags, flags[1:], strict=False))
    if "--hostfile" in given:
        check_hosts(Path(given["--hostfile"]).expanduser())
    if "--master_port" in given:
        check_port(given["--master_port"])


def check_hosts(file: Path) -> None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise Refused(f"HOSTFILE={file}: {reason}") from error
    hosts: set[str] = set()
    for number, line in enumerate(lines, start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        found = HOST.fullmatch(entry)
        if found is None or not int(found["slots"]):
            raise Refused(f"{file}:{number}: expected a host and its GPUs, as in `node1 slots=8`, got {entry!r}")
        if found["name"] in hosts:
            raise Refused(f"{file}:{number}: {found['name']} is named twice")
        hosts.add(found["name"])
    if not hosts:
        raise Refused(f"HOSTFILE={file}: names no host")


def check_port(text: str) -> None:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise Refused(f"MASTER_PORT={text}: not the number of a port")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(text)))
        except OSError as error:
            raise Refused(f"MASTER_PORT={text}: {error.strerror}; give another number") from error


if __name__ == "__main__":
    main()
