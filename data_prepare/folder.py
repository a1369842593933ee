"""The folder of a prepared data set: whole or not there, reused when it was made from the same arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keju.errors import UserError

REPORT = "report.json"


def reusable_report(folder: str | Path, made_from: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The report of the data set in `folder` if it was made from the same, None if a new one is to be written there.

    made_from: everything that decides the contents. Raises UserError if something else is there, unless `overwrite`.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file, expected a folder", option="output_dir")
    if overwrite or not folder.is_dir() or not any(folder.iterdir()):
        return None
    report = _read_report(folder)
    if report is None:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
        wrong = f"holds other files ({names})"
    elif report["made_from"] != made_from:
        old = report["made_from"]
        changed = sorted(key for key in old.keys() | made_from.keys() if old.get(key) != made_from.get(key))
        wrong = f"holds a data set with another {', '.join(changed)}"
    elif any(_size(folder / name) != size for name, size in report["contents"].items()):
        wrong = "holds a data set whose files were changed"
    else:
        return report
    raise UserError(
        f"{folder} {wrong}; name another folder or write there with --overwrite_output_dir", option="output_dir"
    )


def own_files(folder: Path) -> list[Path]:
    """What is in the folder of a data set and no part of it."""
    report = _read_report(folder)
    parts = {REPORT, *report["contents"]} if report else set()
    return [path for path in folder.iterdir() if path.name not in parts]


def describe(folder: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    """The beginning of a report, by which `reusable_report` recognises the data set, once all its files are written."""
    return {"made_from": made_from, "contents": {path.name: _size(path) for path in sorted(folder.iterdir())}}


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is none."""
    if path.is_dir():
        return sum(_size(inside) for inside in path.iterdir())
    return path.stat().st_size if path.exists() else 0


def _read_report(folder: Path) -> dict[str, Any] | None:
    """The report, or None if there is none or it is of something else."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return report if isinstance(report, dict) and {"made_from", "contents"} <= report.keys() else None
