"""Checkpoints of a run: written aside, checksummed, renamed; the last whole one is always there.

`manifest.json`, written last, lists every file with its size and hash, and how many processes wrote them. A folder
without one was never finished. `made_with` in it says what decided the run (see keju.training.resuming).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from keju.errors import UserError
from keju.records.locks import clear_leftovers
from keju.records.writing import delete_folder, hidden_names, whole_folder, write_json
from keju.training.processes import is_main_process, num_launched, num_processes, wait_for_all

MANIFEST = "manifest.json"
STATE = "trainer_state.json"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints of a run, oldest first."""
    found = [path for path in run.glob("checkpoint-[0-9]*") if (path / MANIFEST).is_file()]
    return sorted((int(path.name.rpartition("-")[2]), path) for path in found)


@contextmanager
def checkpoint_aside(
    run: Path,
    step: int,
    *,
    keep: int | None,
    spare: Iterable[Path | None] = (),
    made_with: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """A folder to write the checkpoint of `step` to; as the block ends it becomes `run`/checkpoint-<step>.

    All processes enter; each may write files of its own. Only then are other checkpoints deleted: older ones but for
    the newest, with which `keep` are left (None: all of them), and those in `spare`; and those of later steps, which
    are damaged or of a course that the run has left by resuming from an older one. When the block fails, what was
    written goes and nothing else. made_with: see keju.training.resuming.
    """
    folder, mark = run / f"checkpoint-{step}", f"{step:08x}"
    is_main = is_main_process()
    if is_main and run.exists():
        clear_leftovers(run, r"checkpoint-\d+")
    # The first process makes the folder, and gives it its name; the others know what it is called until then.
    others = nullcontext(hidden_names(folder.absolute(), mark)[0])
    with whole_folder(folder, mark=mark) if is_main else others as aside:
        wait_for_all()
        yield aside
        wait_for_all()
        if is_main:
            _describe_files(aside, made_with)
    if is_main:
        _flush_names(run)  # before an older checkpoint goes
        _delete(run, step, keep, {path.resolve() for path in spare if path is not None})
    wait_for_all()


def _describe_files(aside: Path, made_with: Mapping[str, Any] | None) -> None:
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    described = {path.relative_to(aside).as_posix(): _describe(path, flush=True) for path in files}
    manifest = {"num_processes": num_processes(), "made_with": made_with, "files": described}
    write_json(aside / MANIFEST, manifest)


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(run: Path, step: int, keep: int | None, spare: set[Path]) -> None:
    found = checkpoints(run)
    older = [path for number, path in found if number < step]
    dispensable = older[: max(0, len(older) - keep + 1)] if keep else []
    later = [path for number, path in found if number > step]  # to be resumed from by nobody, least of all by `auto`
    for path in [*dispensable, *later]:
        if path.resolve() not in spare:
            delete_folder(path)


def _describe(path: Path, *, flush: bool = False) -> dict[str, int | str]:
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        digest = hashlib.sha256()
        while piece := file.read(1 << 24):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """{"num_processes", "made_with", "files"}. Raises UserError, in a few words, where there is none of this form."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"not a whole checkpoint (no {MANIFEST})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise UserError(f"{MANIFEST} is damaged") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not isinstance(manifest.get("num_processes"), int):
        raise UserError(f"{MANIFEST} is of another form")
    for name, known in files.items():
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not (inside and isinstance(known, dict) and isinstance(known.get("bytes"), int) and "sha256" in known):
            raise UserError(f"{MANIFEST} is of another form")
    return manifest


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when every file is as it was written."""
    try:
        listed = read_manifest(checkpoint)["files"]
    except UserError as error:
        return str(error)
    for name, known in listed.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != known["bytes"]:
            return f"{name} has {path.stat().st_size:,} of {known['bytes']:,} bytes"
        if _describe(path) != known:
            return f"{name} is damaged (its checksum differs)"
    return None


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged one is named on stderr and passed over."""
    for _, path in reversed(checkpoints(run)):
        wrong = damage(path)
        if wrong is None:
            return path
        print(f"warning: {path}: {wrong}; looking for an older checkpoint", file=sys.stderr)
    return None


def check_checkpoint(checkpoint: Path) -> None:
    """Raises UserError, naming the file, unless `checkpoint` is whole and of a run of as many processes as this."""
    wrong = damage(checkpoint)
    if wrong is not None:
        raise UserError(f"--resume_from_checkpoint: {checkpoint}: {wrong}")
    check_num_processes(checkpoint)


def check_num_processes(checkpoint: Path) -> None:
    """Raises UserError unless a whole checkpoint is of a run of as many processes as this."""
    before = read_manifest(checkpoint)["num_processes"]
    now = num_launched()
    if before != now:
        raise UserError(
            f"--resume_from_checkpoint: {checkpoint} is of a run of {before} process(es), this one has {now}: records "
            f"and optimizer are shared out otherwise; go on with NUM_GPUS={before}, or start a new run from "
            f"--model_name_or_path {checkpoint}"
        )


def step_of(checkpoint: Path) -> int:
    return int(_state(checkpoint)["global_step"])


def num_logged(checkpoint: Path) -> int | None:
    """How many rows of its own step a run had logged when it wrote this checkpoint; None where it keeps no account."""
    state = _state(checkpoint)
    history = state.get("log_history")
    if not isinstance(history, list):
        return None
    return sum(isinstance(row, dict) and row.get("step") == state["global_step"] for row in history)


def _state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
