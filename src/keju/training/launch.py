"""Runs a stage script's main(): what went wrong is said in a few lines, and the exit code tells whose it was."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

import huggingface_hub.constants
import torch
import transformers

from keju.errors import UserError, missing_extra
from keju.training.arguments import parsed_arguments
from keju.training.cache_folder import give_others_a_place
from keju.training.crash import explain
from keju.training.processes import num_launched, process_index
from keju.training.run_folder import RunFolder, current_run
from keju.training.stopping import Stopped, handle_signals
from keju.training.terminal import ReaderGone, Terminal, visible

USAGE, CRASH, INTERRUPTED, READER_GONE = 2, 1, 130, 141  # the last two as of processes that a signal ended
# Mistakes that the operating system finds: a missing file is the user's wherever it is opened.
FILE_MISTAKES = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
NAME_MISTAKES = (errno.ENAMETOOLONG, errno.ELOOP)
# How torch begins, and ends with the line "class: message", what it makes of an error in another process.
IN_A_WORKER = re.compile(r"Caught \w+ in DataLoader worker")
# Nothing is sent or fetched that was not asked for; the environment covers child processes.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_stage(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and exits: 0 done, 2 a mistake in flags or data (one line), 1 a crash, 130 Ctrl-C or a signal,
    141 where nobody reads any more what is printed (`| head`), without a word.

    A training run that has begun saves a checkpoint at a signal and exits with 0 (see keju.training.stopping).

    KEJU_DEBUG=1 shows the traceback of every error.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    give_others_a_place()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate imports deepspeed, which warns about guessing this
    sys.stdout, sys.stderr = Terminal(sys.stdout), Terminal(sys.stderr)
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # it reads the environment only when imported
    transformers.logging.disable_progress_bar()  # "Writing model shards": a bar of ours is on the terminal already
    handle_signals()
    # What DeepSpeed calls in torch.distributed
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)
    try:
        code = run_guarded(main)
        sys.stdout.flush()
        sys.stderr.flush()
    except ReaderGone:
        code = READER_GONE
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if code:
            # Collectives that other processes still wait in would keep this one from ending, and print over our lines.
            os._exit(code)
        torch.distributed.destroy_process_group()
    sys.exit(code)


def run_guarded(main: Callable[[], None]) -> int:
    """Calls `main` and returns the exit code of `run_stage`, after saying on stderr what went wrong."""
    try:
        main()
    except Stopped as stopped:
        if process_index() == 0:
            _say([str(stopped)])
    except ReaderGone:
        return READER_GONE
    except SystemExit as error:  # argparse: it has said its line
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:  # noqa: BLE001  (reported below, whatever it is)
        return _report(error, current_run())
    finally:
        run = current_run()
        if run is not None:
            run.close()
    return 0


def _report(error: BaseException, run: RunFolder | None) -> int:
    debug = os.environ.get("KEJU_DEBUG", "") not in ("", "0")
    details = "".join(traceback.format_exception(error))
    prefix = f"[rank {os.environ['RANK']}] " if num_launched() > 1 else ""
    if is_user_mistake(error):
        lines = [f"{prefix}error: {_one_line(error)}"]
        if debug:
            lines.insert(0, details)
        _say(lines)
        if run is not None:
            run.discard_if_untouched()
        return USAGE
    what, *remedies = explain(error, run.arguments if run is not None else parsed_arguments()) or [""]
    lines = [] if what else [f"{prefix}{type(error).__name__}: {_one_line(error)}"]
    lines += [f"{prefix}{what}", *(f"  - {remedy}" for remedy in remedies)] if what else []
    is_logged = run is not None and run.is_main and all(map(run.write_log, details.splitlines()))
    if is_logged:
        lines.append(f"{prefix}the whole traceback is in {run.log_path}")
    if debug or not (what or is_logged):
        lines.insert(0, details)
    _say(lines)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else CRASH


def is_user_mistake(error: BaseException) -> bool:
    """What we say is one (a UserError), a file that is not there, wherever it is opened, and a package of an extra."""
    if isinstance(error, (UserError, *FILE_MISTAKES)):
        return True
    if isinstance(error, ModuleNotFoundError):
        return bool(missing_extra(error))
    return isinstance(error, OSError) and error.errno in NAME_MISTAKES


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and missing_extra(error):
        return missing_extra(error)
    text = (error.in_flags() if isinstance(error, UserError) else str(error)).strip()
    if isinstance(error, UserError) and IN_A_WORKER.match(text):
        text = text.splitlines()[-1].partition(": ")[2]
    return text.splitlines()[0][:2000] if text else type(error).__name__


def _say(lines: list[str]) -> None:
    print(visible("\n".join(lines)), file=sys.stderr)
