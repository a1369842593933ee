"""Which files a name of records stands for: one file, its compressed form, all shards of a set, or a pattern.

ranked_train, or ranked_train.jsonl -> ranked_train.jsonl.zst, or ranked_train-00001-of-00016.jsonl.zst and so on
"""

from __future__ import annotations

import re
from pathlib import Path

from keju.errors import UserError
from keju.records.opening import COMPRESSED, packing_of

PLAIN = (".jsonl", ".ndjson", ".json", ".txt")
TABLES = (".parquet", ".arrow")
SUFFIXES = (*PLAIN, *(plain + packed for plain in PLAIN for packed in COMPRESSED), *TABLES)
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+(\.\w+)?)")


def suffix_of(path: Path) -> str:
    """The ending that says how a file is read (".jsonl.zst"), in small letters; "" where there is none that we know."""
    return max((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def plain_suffix(path: Path) -> str:
    """The same without how the file is compressed: ".jsonl" of ".jsonl.zst"."""
    return suffix_of(path).removesuffix(packing_of(path))


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix_of(path))]


def record_files(path: str | Path) -> list[Path]:
    """The files that `path` stands for, in their order.

    Raises UserError where nothing is there, where one of a set of shards is missing (it is named), and where several
    files could be meant.
    """
    path = Path(path)
    if path.is_file():
        if not suffix_of(path):
            raise UserError(f"{path}: records are read from files that end in {', '.join(SUFFIXES)}")
        return [path]
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file of records")
    if any(character in path.name for character in "*?["):
        found = sorted(file for file in path.parent.glob(path.name) if file.is_file() and suffix_of(file))
        if not found:
            raise UserError(f"{path}: no file of records matches")
        return found
    wanted = suffix_of(path)
    stem = _stem(path)
    beside = path.parent.glob(f"{_escaped(stem)}.*")
    single = [file for file in beside if suffix_of(file) and suffix_of(file).startswith(wanted)]
    single = sorted(file for file in single if _stem(file) == stem and file.is_file())
    sets = _sets(path.parent, stem, wanted)
    if len(single) + len(sets) > 1:
        names = [file.name for file in single] + [f"{stem}-*-of-{count:05}{suffix}" for count, suffix in sets]
        raise UserError(f"{path}: which one is meant of {', '.join(names)}? give the whole name, or a pattern")
    if single:
        return single
    if not sets:
        raise UserError(f"{path}: no such file{_beside(path.parent)}")
    ((count, suffix), numbers) = next(iter(sets.items()))
    names = [path.with_name(f"{stem}-{number:05}-of-{count:05}{suffix}") for number in range(1, count + 1)]
    missing = [name for number, name in enumerate(names, start=1) if number not in numbers]
    if missing:
        raise UserError(
            f"{missing[0]}: no such file, {len(missing)} of {count} shards missing; make or copy them again, or give a "
            "pattern of those to read"
        )
    return names


def _sets(folder: Path, stem: str, wanted: str) -> dict[tuple[int, str], set[int]]:
    """(number of shards, suffix) -> the numbers that are there."""
    sets: dict[tuple[int, str], set[int]] = {}
    for file in folder.glob(f"{_escaped(stem)}-*-of-*"):
        found = SHARD.fullmatch(file.name)
        suffix = suffix_of(file)
        if found and found["stem"] == stem and found["suffix"].lower() == suffix and suffix.startswith(wanted):
            sets.setdefault((int(found["count"]), found["suffix"]), set()).add(int(found["number"]))
    return sets


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _beside(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*") if suffix_of(file))
    return f"; this folder has {', '.join(names[:8])}" if names else ""
