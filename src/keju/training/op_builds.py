"""DeepSpeed's ops, built at a first run: a build that was killed does not stop the runs after it.

torch marks a build folder as taken by a file named `lock`, which a killed process leaves behind: every later start then
waits for it, without a word and without an end. Here the operating system holds the lock and lets go of it when its
process dies. The file is still written, for other programs on this machine.
"""

from __future__ import annotations

import logging
import os
import time

import psutil
from filelock import FileLock, Timeout
from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

SECONDS = 0.1  # between two looks at a lock of another program


class BuildLock(cpp_extension.FileBaton):
    """What torch's extensions take as their lock.

    Processes of Keju wait for each other through `FileLock`. One that has it decides, alone, whether `lock` is of
    another program that still runs, which has the file open, or was left behind.
    """

    def __init__(self, lock_file_path: str, *args, **options) -> None:
        super().__init__(lock_file_path, *args, **options)
        self._held = FileLock(f"{lock_file_path}.held")

    def try_acquire(self) -> bool:
        try:
            self._held.acquire(timeout=0)
        except Timeout:
            return False
        while not super().try_acquire():
            if is_open_somewhere(self.lock_file_path):
                time.sleep(SECONDS)
            elif os.path.exists(self.lock_file_path):
                logger.warning("%s was left behind by a build that was killed: removed", self.lock_file_path)
                os.remove(self.lock_file_path)
        return True

    def wait(self) -> None:
        with self._held:
            pass

    def release(self) -> None:
        super().release()
        self._held.release()


def is_open_somewhere(path: str) -> bool:
    """Whether a process that we may look into has the file open."""
    path = os.path.realpath(path)
    for process in psutil.process_iter():
        try:
            if any(file.path == path for file in process.open_files()):
                return True
        except (psutil.Error, OSError):  # ended meanwhile, or of another user
            continue
    return False


def survive_killed_builds() -> None:
    """From now on builds of this process are locked by `BuildLock`."""
    cpp_extension.FileBaton = BuildLock
