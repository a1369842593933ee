"""Where a conversion may write."""

from __future__ import annotations

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
