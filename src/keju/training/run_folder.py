"""The folder of a run: args.json, metrics.jsonl, <stage>.log, summary.json, plots and the checkpoint."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keju.errors import UserError
from keju.records.journal import Journal
from keju.records.locks import clear_leftovers
from keju.records.writing import write_json
from keju.training.checkpoints import (
    check_checkpoint,
    check_num_processes,
    checkpoints,
    newest_whole,
    num_logged,
    read_manifest,
    step_of,
)
from keju.training.old_files import START, all_within, but_start, delete
from keju.training.processes import is_main_process
from keju.training.provenance import describe_versions, plain_arguments, without_secrets
from keju.training.resuming import OPTIMIZER, changed_inputs, changed_settings, deciding
from keju.training.tee import TerminalLog

BESIDE = ".new"  # in a folder whose run is to be replaced: the new run, until it has begun

_current: RunFolder | None = None


def current_run() -> RunFolder | None:
    """The run of this process, if one has been opened: where a crash is logged."""
    return _current


class RunFolder:
    """Opens `output_dir` for one run of `stage`, and from then on logs the terminal into it.

    arguments: the dataclasses of the run, kept in args.json.
    overwrite: a run that is there gives its place to this one, when `begin` is called.
    resume: a checkpoint folder, or "auto" for the newest one in `output_dir` (none there: the run starts from the
    beginning). The checkpoint to load is `self.checkpoint`; what differs between this run and the one that wrote it is
    an error, or, with `accept_changes`, said, and named in `self.changed`.
    goes_on: an unfinished run that is equal in the arguments named here is taken up, by a stage that finds in the
    folder what it need not do again.
    Raises UserError, naming the flag, when the folder holds another run or files that no run wrote.
    Only rank 0 writes and prints; in other processes the methods do nothing, and stdout is silent until it closes.
    """

    def __init__(
        self,
        output_dir: str | Path,
        stage: str,
        *,
        arguments: Iterable[Any] = (),
        overwrite: bool = False,
        resume: str | None = None,
        accept_changes: bool = False,
        goes_on: Sequence[str] | None = None,
        argv: list[str] | None = None,
    ):
        global _current
        self.path = Path(output_dir).expanduser()
        self.stage = stage
        self.arguments = plain_arguments(arguments)
        self.argv = without_secrets(list(sys.argv[1:] if argv is None else argv))
        self.started = time.time()
        self._start = time.monotonic()  # the clock of the day may be set while the run goes on
        self.is_main = is_main_process()
        self._resumes = _is_given(resume)
        self.checkpoint = _find_checkpoint(self.path, resume) if self._resumes else None
        self.accepts_changes = accept_changes
        self.made_with: dict[str, Any] = deciding(stage, self.arguments) | {"inputs": {}}
        self._known = read_manifest(self.checkpoint).get("made_with") if self.checkpoint else None
        self.changed = changed_settings(self.checkpoint, self._known, self.made_with, accept=accept_changes)
        self._terminal: TerminalLog | None = None
        self._silence = contextlib.ExitStack()  # processes say the same; the first one is heard
        self._created = False
        self._replaces: list[Path] = []  # what goes when the run begins
        self._home = self.path  # where it writes until then
        if self.is_main:
            self._prepare(overwrite, goes_on)
            self._terminal = TerminalLog(self.log_path)
            try:
                _lock(self._terminal.log.fileno(), self.path)
                write_json(self._home / "args.json", self._describe())
            except BaseException:
                self.close()
                raise
        else:
            self._silence.enter_context(_silent_stdout())
        _current = self
        for name, (before, now) in self.changed.items():
            print(f"changed since {self.checkpoint.name}: --{name} {before} -> {now}")

    @property
    def has_new_schedule(self) -> bool:
        """Whether optimizers that were loaded from the checkpoint must be given the settings of this run."""
        return not OPTIMIZER.isdisjoint(self.changed)

    def identify(self, **inputs: str | None) -> None:
        """Adds to what decides the run: hashes of the records, models and tokenizer that flags name (None: none).

        Raises UserError, or says so with `accept_changes`, where the checkpoint was made with others.
        """
        given = {name: digest for name, digest in inputs.items() if digest is not None}
        self.made_with["inputs"] |= given
        for name in changed_inputs(self.checkpoint, self._known, given, accept=self.accepts_changes):
            print(f"changed since {self.checkpoint.name}: what --{name} names")

    def begin(self) -> None:
        """The run takes the place of the one that it replaces, which goes: call it when nothing but the work itself can
        fail, and before anything is written to `path`. Without such a one, and when called again, it does nothing."""
        if self._home == self.path:
            return
        # summary.json first, so that half of a run is not taken for a finished one; args.json, which marks it, last.
        order = {self.path / "summary.json": 0, self.path / "args.json": 2}
        delete(sorted(self._replaces, key=lambda path: order.get(path, 1)))
        for file in self._home.iterdir():
            os.replace(file, self.path / file.name)
        self._home.rmdir()
        self._home = self.path
        self._terminal.log.path = self.log_path

    @property
    def log_path(self) -> Path:
        return self._home / f"{self.stage}.log"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def metrics(self) -> Journal:
        """One row ("step" and numbers) each time something is logged."""
        return Journal(self.metrics_path)

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends one row ("step" and numbers) to metrics.jsonl. NaN and Inf, which JSON has not, become null."""
        if not self.is_main:
            return
        self.begin()
        if not self.path.is_dir():
            print(f"warning: {self.path} was removed while the run goes on; it is made again", file=sys.stderr)
            write_json(self.path / "args.json", self._describe())
        self.metrics.append({name: _finite(value) for name, value in row.items()})

    def write_log(self, line: str) -> bool:
        """One line for the log file alone; whether it is there."""
        if self._terminal is None:
            return False
        self._terminal.log.write_line(line)
        return not self._terminal.log.broken

    def finish(self, **figures: Any) -> dict[str, Any]:
        """Writes summary.json, which marks the run as finished, closes the log and returns the summary.

        seconds, steps, tokens, tokens_per_second, first_loss and last_loss come from the run itself; `figures` are
        added and win.
        """
        reserved = figures.keys() & {"stage", "finished"}
        assert not reserved, f"{reserved} of summary.json belong to the run"
        self.begin()
        rows = list(self.metrics.read())
        summary = {
            "stage": self.stage,
            "finished": True,
            "seconds": round(time.monotonic() - self._start, 2),
            **_training_figures(rows),
            **figures,
        }
        summary = {name: _finite(value) for name, value in summary.items()}
        if self.is_main:
            write_json(self.path / "summary.json", summary)
        self.close()
        return summary

    def close(self) -> None:
        """Gives the terminal back. Safe to call twice."""
        global _current
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None
        self._silence.close()
        if _current is self:
            _current = None

    def discard_if_untouched(self) -> None:
        """After a mistake of the user: removes what opening wrote, if nothing else has come since."""
        self.close()
        if self._home != self.path:
            shutil.rmtree(self._home)
        elif self.is_main and self._created and _has_no_results(self.path):
            shutil.rmtree(self.path)

    def _describe(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "command": without_secrets(list(sys.orig_argv)),
            "argv": self.argv,
            "resumed_from": str(self.checkpoint) if self.checkpoint else None,
            **describe_versions(),
            "arguments": self.arguments,
        }

    def _prepare(self, overwrite: bool, goes_on: Sequence[str] | None) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir: {self.path} is a file")
        self._created = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            if self._created and self.path.is_dir():
                self.path.rmdir()
            raise UserError(f"--output_dir: {self.path} cannot be written ({error.strerror})") from error
        beside = self.path / BESIDE
        for log in (*self.path.glob("*.log"), *beside.glob("*.log")):
            with log.open("a", encoding="utf-8") as file:
                _lock(file.fileno(), self.path)
        if beside.is_dir() and _has_no_results(beside):
            shutil.rmtree(beside)  # of a run that ended before it began
        entries = [entry for entry in self.path.iterdir() if not entry.name.startswith(".")]
        if not entries or entries == [self.log_path]:  # a run that was killed between opening the log and args.json
            return
        if not is_run(self.path):
            raise UserError(
                f"--output_dir: {self.path} holds files that are not of a run (such as {min(entries).name}); "
                "choose an empty or new folder"
            )
        clear_leftovers(self.path)
        if self.checkpoint is not None:
            self._rewind_metrics()
        elif _has_no_results(self.path):
            delete(all_within(but_start(entries)))
        elif overwrite:
            _check_no_run_inside(self.path)
            self._check_no_input_inside()
            self._replaces = all_within(entries)
            self._home = beside
            beside.mkdir()
        elif self._resumes and not is_finished(self.path) and not _hold_weights(entries):
            print(f"{self.path} holds no checkpoint yet: starting from the beginning")
            _check_no_run_inside(self.path)
            delete(all_within(but_start(entries)))
        elif goes_on is not None and not is_finished(self.path) and self._is_same_run(goes_on):
            print(f"{self.path} holds an unfinished run of this model: going on with it")
        else:
            known = json.loads((self.path / "args.json").read_text(encoding="utf-8"))
            state = "a finished" if is_finished(self.path) else "an unfinished"
            resume = ", or --resume_from_checkpoint auto" if checkpoints(self.path) else ""
            raise UserError(
                f"--output_dir: {self.path} already holds {state} run ({known['stage']}, {known['started'][:16]}); "
                f"choose another folder, or --overwrite_output_dir{resume}"
            )

    def _check_no_input_inside(self) -> None:
        """Raises UserError for a model or data in the folder that is to be replaced."""
        home = self.path.resolve()
        for name, value in self.arguments.items():
            for text in value if isinstance(value, list) else [value]:
                if name in ("output_dir", "logging_dir") or not isinstance(text, str) or not text:
                    continue
                path = _existing(text)
                if path is not None and path.is_relative_to(home):
                    raise UserError(
                        f"--overwrite_output_dir: it would delete --{name} {text}, which lies in --output_dir "
                        f"{self.path}; choose another --output_dir"
                    )

    def _is_same_run(self, names: Sequence[str]) -> bool:
        known = _read_object(self.path / "args.json")
        same = [known["arguments"].get(name) == self.arguments.get(name) for name in names]
        return known["stage"] == self.stage and all(same)

    def _rewind_metrics(self) -> None:
        """Drops rows that came after the checkpoint, the final evaluation's among them: they will be logged again."""
        (self.path / "summary.json").unlink(missing_ok=True)
        if self.metrics_path.is_file():
            step = step_of(self.checkpoint)
            rows = list(self.metrics.read())
            before = [row for row in rows if row.get("step", 0) < step]
            own = [row for row in rows if row.get("step", 0) == step]
            self.metrics.rewrite([*before, *own[: num_logged(self.checkpoint)]])


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def is_run(path: str | Path) -> bool:
    """Whether a run was opened in this folder."""
    return _read_object(Path(path) / "args.json").keys() >= {"stage", "argv", "arguments"}


def is_finished(path: str | Path, argv: list[str] | None = None) -> bool:
    """Whether the folder holds a finished run; with `argv`, one that was started with exactly these flags."""
    path = Path(path)
    if _read_object(path / "summary.json").get("finished") is not True:
        return False
    return argv is None or _read_object(path / "args.json").get("argv") == without_secrets(list(argv))


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}  # somebody else's file
    return value if isinstance(value, dict) else {}


def _has_no_results(path: Path) -> bool:
    """A run that died before its first step: nobody misses it."""
    return all(entry.name in ("args.json", START) or entry.suffix == ".log" for entry in path.iterdir())


def _hold_weights(entries: list[Path]) -> bool:
    files = (file for entry in but_start(entries) for file in (entry, *entry.rglob("*")))
    return any(file.suffix == ".safetensors" for file in files)


def _check_no_run_inside(path: Path) -> None:
    inner = next((args.parent for args in sorted(path.glob("*/**/args.json")) if is_run(args.parent)), None)
    if inner is not None:
        raise UserError(f"--overwrite_output_dir: {path} also holds the run {inner}; delete or move that one first")


def _existing(text: str) -> Path | None:
    """The file or folder that a setting names, if it does, with links followed."""
    try:
        path = Path(text).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long for a name, a NUL in it, a user that is not there
        return None


def _is_given(resume: str | None) -> bool:
    return resume is not None and str(resume).lower() not in ("", "false")


def _find_checkpoint(path: Path, resume: str) -> Path | None:
    is_auto = str(resume).lower() in ("auto", "true", "latest")
    checkpoint = newest_whole(path) if is_auto else Path(resume).expanduser()
    if checkpoint is not None:
        (check_num_processes if is_auto else check_checkpoint)(checkpoint)  # every file has been read for `auto`
    elif checkpoints(path):
        raise UserError(
            f"--resume_from_checkpoint {resume}: every checkpoint in {path} is damaged; --overwrite_output_dir in its "
            "place deletes them and starts from the beginning"
        )
    return checkpoint


def _lock(descriptor: int, path: Path) -> None:
    """Held until the log closes. Raises UserError when another process writes to this folder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--output_dir: another process is writing to {path} now; choose another folder") from None
    except OSError as error:  # some network file systems cannot lock
        print(f"warning: {path} cannot be locked ({error.strerror}); do not start two runs in it", file=sys.stderr)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _training_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    figures: dict[str, Any] = {}
    if losses:
        figures |= {"steps": rows[-1].get("step"), "first_loss": losses[0], "last_loss": losses[-1]}
    tokens = [row["num_tokens"] for row in rows if row.get("num_tokens") is not None]
    if tokens:
        figures["tokens"] = tokens[-1]
    elapsed = [row["elapsed"] for row in rows if row.get("elapsed") and row.get("num_tokens") is not None]
    if tokens and elapsed:
        figures["tokens_per_second"] = round(tokens[-1] / elapsed[-1], 1)
    return figures
