"""Runs code in processes of its own that need not import torch first, which takes seconds each time.

One process imports what is named here, and forks one for each piece of code. None of it is keju, transformers or PEFT:
how these come into a process is what is tested.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback

PRELOADED = (
    *("numpy", "pandas", "pyarrow", "safetensors", "scipy.optimize", "sympy", "huggingface_hub", "tokenizers"),
    *("torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.utils.data"),
    "bitsandbytes",
)


class WarmProcess:
    """Its processes come and go with `run`; it ends itself with the block."""

    def __enter__(self) -> WarmProcess:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *error) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def run(self, code: str) -> subprocess.CompletedProcess:
        """As subprocess.run([sys.executable, "-c", code]) with captured text."""
        print(json.dumps(code), file=self._process.stdin, flush=True)
        said = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(code, **said)


def serve() -> None:
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            __import__(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = os.fork()
            if not process:
                _become(json.loads(line), out, err)
            _, status = os.waitpid(process, 0)
            out.seek(0), err.seek(0)
            said = {"returncode": os.waitstatus_to_exitcode(status), "stdout": out.read(), "stderr": err.read()}
        print(json.dumps(said), flush=True)


def _become(code: str, out, err) -> None:
    """The process that runs `code`, until its end."""
    code_of_exit = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        code_of_exit = 0
    except SystemExit as exit:
        code_of_exit = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code_of_exit)


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != os.path.dirname(os.path.abspath(__file__))]
    serve()
