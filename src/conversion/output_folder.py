"""The folder that a conversion makes: it appears when all of it is written and checked, or not at all."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def check_output(output: Path, source: Path, *, overwrite: bool) -> None:
    """Raises ValueError where `output` is, holds or lies in `source`, or is there already.

    `overwrite` lets it replace a folder that holds a model (a config.json), and no other.
    """
    output, source = output.resolve(), source.resolve()
    if output == source or output in source.parents or source in output.parents:
        raise ValueError(f"--output_dir {output}: must lie apart from the folder that is converted, {source}")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir():
        raise ValueError(f"--output_dir {output}: is a file, expected a folder")
    if not overwrite:
        raise ValueError(f"--output_dir {output}: is not empty; name another or replace it with --overwrite_output_dir")
    if not (output / "config.json").is_file():
        raise ValueError(f"--output_dir {output}: holds no model (no config.json), so that it is not replaced")


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A fresh folder beside `output` that takes its place when the block ends, and vanishes when the block fails."""
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    aside, old = (output.with_name(f".{output.name}.{mark}.{state}") for state in ("part", "old"))
    aside.mkdir()
    try:
        yield aside
        if output.exists():
            output.rename(old)
        aside.rename(output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
