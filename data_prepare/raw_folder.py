"""The files of a folder of raw data: which are there, what their contents are known again by, whose split they are."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keju.records.digests import data_digest, file_digest, file_state
from keju.records.opening import packing_of

REMEMBERED = 1 << 22  # bytes of a file whose checksum is worth remembering
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "eval", "evaluation"), "dev"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
SHARD = re.compile(r"([-_.]\d+([-_]of[-_]\d+)?)+$", re.IGNORECASE)


def raw_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """(names of all files below a folder with "/", sorted; what is left out there and why).

    Links to files and folders are followed, but nothing is listed twice: what a link names and the folder has already
    is left out, so that links in a circle end. Hidden files and folders are left out.
    """
    files: dict[str, str] = {}  # where each really is -> its name
    left_out: dict[str, str] = {}
    folders = {os.path.realpath(folder)}
    waiting, links = sorted(folder.iterdir()), []
    while waiting or links:
        follow = not waiting  # what is really there comes before what links name
        if follow:
            waiting, links = [min(links)], sorted(links)[1:]
        entry = waiting.pop()
        name, place = entry.relative_to(folder).as_posix(), os.path.realpath(entry)
        if entry.name.startswith("."):
            left_out[name] = "is hidden"
        elif entry.is_symlink() and not follow:
            links.append(entry)
        elif not entry.exists():
            left_out[name] = "is a link to nothing"
        elif entry.is_dir():
            if place in folders:
                left_out[name] = "is a link to a folder that is read already"
            else:
                folders.add(place)
                waiting += sorted(entry.iterdir())
        elif not entry.is_file():
            left_out[name] = "is no file"
        elif place in files:
            left_out[name] = f"is a link to {files[place]}, which is read already"
        else:
            files[place] = name
    return sorted(files.values()), left_out


def fingerprint(path: Path, memory: Path) -> str:
    """Of the names and contents of a file, or of all files in a folder. memory: see `data_digest`."""
    digest = hashlib.sha256()
    for name, file in _named(path):
        large = file.stat().st_size >= REMEMBERED
        digest.update(f"{name}\0{data_digest(file, memory) if large else file_digest(file)}\0".encode())
    return digest.hexdigest()[:32]


def states(path: Path) -> dict[str, list[int]]:
    """What changes with the contents of the files, by their names; see `file_state`."""
    return {name: file_state(file) for name, file in _named(path)}


def _named(path: Path) -> list[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name, path)]
    return [(name, path / name) for name in raw_files(path)[0]]


def own_splits(names: Iterable[str]) -> dict[str, str]:
    """Name of a file -> "train", "dev" or "test", where the files of a folder say so themselves; else nothing.

    A file says so by its whole name ("dev.jsonl", "test-00000-of-00002.parquet"), by the end of it ("alpaca_train"), by
    its beginning where a file of training rows has the same rest ("test_sft" beside "train_sft"), or by the name of a
    folder around it. Files that say nothing are for training. There are splits where there is something to train on,
    and something else.
    """
    names = list(names)
    words = {name: _words(Path(name)) for name in names}
    rests = {tuple(found[1:]) for found in words.values() if found and SPLIT_NAMES.get(found[0]) == "train"}
    splits = {name: _split(Path(name), words[name], rests) for name in names}
    found = Counter(splits.values())
    if not (found["dev"] or found["test"]) or not (found["train"] or found[""]):
        return {}
    return {name: split or "train" for name, split in splits.items()}


def _words(path: Path) -> list[str]:
    """Of the name without its suffixes and the number of a shard."""
    name = Path(path.stem if packing_of(path) else path.name).stem.lower()
    return re.split(r"[-_. ]+", SHARD.sub("", name))


def _split(path: Path, words: list[str], rests: set[tuple[str, ...]]) -> str:
    if split := SPLIT_NAMES.get(words[-1], ""):
        return split
    if tuple(words[1:]) in rests and (split := SPLIT_NAMES.get(words[0], "")):
        return split
    folders = (SPLIT_NAMES.get(part.lower(), "") for part in reversed(path.parts[:-1]))
    return next(filter(None, folders), "")


def share_of_own(own: Mapping[str, str], files: Mapping[str, list[int]]) -> dict[str, float]:
    """Split that the raw data have -> its share of them, in bytes. files: of `states`."""
    sizes = Counter[str]()
    for name, split in own.items():
        sizes[split] += files[name][0]
    return {split: size / sum(sizes.values()) for split, size in sizes.items() if split != "train"}


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names that have come or gone, or of which something else is said; before and after: of `states`."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def lines_on_files(left_out: Mapping[str, str]) -> list[str]:
    """left_out: name -> why it is not read."""
    names: dict[str, list[str]] = {}
    for name, why in sorted(left_out.items()):
        names.setdefault(why, []).append(name)
    return [f"not read: {_some_of(alike)}: {why}" for why, alike in names.items()]


def lines_on_splits(own: Mapping[str, str]) -> list[str]:
    """own: name -> split."""
    names: dict[str, list[str]] = {}
    for name, split in sorted(own.items()):
        names.setdefault(split, []).append(name)
    if not names:
        return []
    said = "; ".join(f"{split} from {_some_of(names[split])}" for split in ("train", "dev", "test") if split in names)
    return [f"the files have splits of their own: {said} (--own_splits pool draws new ones)"]


def _some_of(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
