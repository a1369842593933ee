"""Record files as trees: encoded in memory where they are small, kept on disk as tokens where they are large."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal, Protocol

from filelock import FileLock, Timeout

from keju.encoding.dataset import EncodedRecords, encode_records
from keju.encoding.encoder import Encoder
from keju.encoding.store_build import build_store
from keju.encoding.store_key import store_key
from keju.encoding.token_store import MANIFEST, DamagedStore, StoredRecords, open_store
from keju.encoding.workers import usable_cores
from keju.errors import UserError
from keju.records.digests import data_digest, file_digest, remembered
from keju.records.folds import Fold
from keju.records.locks import clear_leftovers
from keju.records.opening import packing_of
from keju.records.reading import count_rows, iterate_records
from keju.records.shards import TABLES, plain_suffix, record_files
from keju.records.writing import delete_folder, whole_folder
from keju.training.cache_folder import warn_if_open
from keju.training.progress import Progress
from keju.training.resuming import digest_of
from keju.training.terminal import visible

LARGE = 32 << 20  # bytes of text from which on tokens are kept on disk
COMPRESSION = 4  # a compressed file counts as so many times its size


class RecordSettings(Protocol):
    """What is read here of a stage's data arguments."""

    on_bad_line: Literal["error", "skip"]
    token_cache: Literal["auto", "on", "off"]
    token_cache_dir: str
    num_workers: int | None

    def path(self, filename: str) -> Path: ...


def read_trees(
    data: RecordSettings,
    filename: str,
    encoder: Encoder,
    form: str,
    *,
    option: str,
    max_samples: int | None,
    fold: Fold | None = None,
) -> EncodedRecords:
    """Reads and encodes record files with a progress bar, and says what was left out and why.

    Large files, and those that have been tokenised before, are not read into memory: their trees are on disk then
    (`--token_cache`). option: which one names the file. fold: only the records of this part of it.
    """
    path = data.path(filename)
    try:
        files = record_files(path)
    except UserError as error:
        if path.exists() or any(path.parent.glob(f"{path.name.split('.')[0]}*")):
            raise
        raise UserError(f"{path} does not exist{_instead(path, option)}", option=option) from error
    request = TreeRequest(path, files, encoder, form, data.on_bad_line, max_samples, fold)
    is_large = data.token_cache == "on" or (data.token_cache == "auto" and text_bytes(files) >= LARGE)
    stored = None
    if is_large or (data.token_cache == "auto" and _has_stores(data)):
        stored = request.stored(Path(data.token_cache_dir).expanduser(), data.num_workers, build=is_large)
    found = stored or request.encoded()
    cap = "--max_eval_samples" if option == "eval_filename" else "--max_train_samples"
    request.show_cap(found, cap, Path(data.token_cache_dir).expanduser())
    return replace(found, digest=digest_of(request.digests(Path(data.token_cache_dir).expanduser())))


def _instead(path: Path, option: str) -> str:
    """What to give for a file that is not there."""
    shards = re.compile(r"-\d+-of-\d+")
    names = sorted({shards.sub("", found.name) for found in path.parent.glob("*.jsonl*")})
    there = f"; this folder has {', '.join(names)}" if names else ""
    return there + ('; --eval_filename "" trains without held-out records' if option == "eval_filename" else "")


def read_splits(
    data, encoder: Encoder, form: str, *, fold: Fold | None = None
) -> tuple[EncodedRecords, EncodedRecords | None]:
    """Training records (of a part of them, see read_trees) and, where --eval_filename names some, held-out ones."""
    records = read_trees(
        data, data.train_filename, encoder, form, option="train_filename", max_samples=data.max_train_samples, fold=fold
    )
    if not data.eval_filename:
        return records, None
    return records, read_trees(
        data, data.eval_filename, encoder, form, option="eval_filename", max_samples=data.max_eval_samples
    )


def text_bytes(files: Sequence[Path]) -> int:
    """About how much text the files hold."""
    return sum(file.stat().st_size * (COMPRESSION if packing_of(file) else 1) for file in files)


def _has_stores(data: RecordSettings) -> bool:
    return any(Path(data.token_cache_dir).expanduser().glob(f"*/{MANIFEST}"))


@dataclass
class TreeRequest:
    """Which records are wanted as which trees. path: as the user gave it; files: what it stands for."""

    path: Path
    files: list[Path]
    encoder: Encoder
    form: str
    on_bad_line: str = "error"
    max_samples: int | None = None
    fold: Fold | None = None

    def __post_init__(self) -> None:
        if self.fold is not None and self.fold.count == 1:
            self.fold = None  # all of the file, with the same key as for a stage that knows no parts

    def encoded(self) -> EncodedRecords:
        """In memory."""
        bad: list[str] = []
        records = iterate_records(self.path, on_bad_line=self.on_bad_line, on_skipped=bad.append)
        first = list(islice(records, 1))
        held = (record for record in chain(first, records) if self.fold is None or self.fold.holds(record))
        read = list(islice(held, self.max_samples))
        if not first:
            found = f"no usable record, {len(bad)} bad ones such as {bad[0]}" if bad else "the file has no records"
            raise UserError(f"{self.path}: {found}")
        with Progress(len(read), f"encode {self.path.name}", unit="records") as bar:
            encoded = encode_records(read, self.encoder, self.form, on_bad_line=self.on_bad_line, on_record=bar.advance)
        encoded = replace(encoded, num_records=len(read), num_bad=len(bad))
        self._report([*bad, *encoded.skipped], len(bad) + encoded.num_skipped, len(read) + len(bad))
        return encoded

    def stored(self, cache: Path, num_workers: int | None, *, build: bool) -> StoredRecords | None:
        """From the store below `cache`, which is made first where there is none (None without `build`).

        Of the processes of a run, and of several runs, one makes it and the others wait. A damaged one is made anew.
        """
        warn_if_open(cache)
        folder = self.folder(cache)
        records = self._opened(folder)
        if records is None and build:
            with _only_one(cache / f"{folder.name}.lock", f"encode {self.path.name}"):
                records = self._opened(folder)
                if records is None:
                    self._build(folder, num_workers)
                    records = open_store(folder, self.files)
        if records is not None:
            listed = [*records.bad, *records.skipped]
            self._report(listed, records.num_bad + records.num_skipped, records.num_records + records.num_bad)
        return records

    def folder(self, cache: Path) -> Path:
        """Where the store below `cache` is or would be."""
        return cache / self._key(cache)

    def discard(self, cache: Path) -> None:
        """Deletes the store, which a run that reads it goes on reading."""
        folder = self.folder(cache)
        with _only_one(cache / f"{folder.name}.lock", f"encode {self.path.name}"), contextlib.suppress(OSError):
            delete_folder(folder)

    def digests(self, cache: Path) -> list[str]:
        """Checksums of the files; those of large ones are kept in `cache`."""
        if text_bytes(self.files) < LARGE:
            return [file_digest(file) for file in self.files]
        with _only_one(cache / "data.lock", "read the data"):  # one process reads the files for their checksums
            return [data_digest(file, cache / "data") for file in self.files]

    def show_cap(self, found: EncodedRecords, flag: str, cache: Path) -> None:
        """Says what `max_samples`, the value of `flag`, leaves out of the files. found: what it lets through."""
        if self.max_samples is None or found.num_records < self.max_samples:
            return
        said = f"{self.path.name}: {flag} {self.max_samples} leaves out"
        if self.fold is not None:  # of the others it is not known whose they are
            print(f"{said} what comes after {found.num_records} records of part {self.fold.number}/{self.fold.count}")
            return
        total = self._num_rows(cache)
        if (rest := total - found.num_records - found.num_bad) > 0:
            print(f"{said} {rest} of {total} records")

    def _num_rows(self, cache: Path) -> int:
        """How many rows the files have; those of large ones are kept in `cache`."""
        if text_bytes(self.files) < LARGE:
            return sum(map(count_rows, self.files))
        with _only_one(cache / "data.lock", "read the data"):
            return sum(remembered(file, cache / "data", "rows", count_rows) for file in self.files)

    def _key(self, cache: Path) -> str:
        fold = None if self.fold is None else (self.fold.number, self.fold.count)
        settings = {"on_bad_line": self.on_bad_line, "max_samples": self.max_samples, "fold": fold}
        return store_key(self.digests(cache), self.files, self.encoder, self.form, **settings)

    def _opened(self, folder: Path) -> StoredRecords | None:
        if not folder.exists():
            return None
        try:
            return open_store(folder, self.files)
        except DamagedStore as error:
            print(f"The tokens that were kept are damaged, and not used: {error}")
            return None

    def _build(self, folder: Path, num_workers: int | None) -> None:
        num_workers = num_workers or usable_cores()
        size = text_bytes(self.files)
        if size < LARGE // 16 * num_workers:
            num_workers = max(1, min(num_workers, size // (LARGE // 16)))  # a process takes seconds to start
        clear_leftovers(folder.parent, re.escape(folder.name))
        is_table = any(plain_suffix(file) in TABLES for file in self.files)
        text_read = 0
        with (
            whole_folder(folder) as aside,
            Progress(None, f"encode {self.path.name}", unit="records") as bar,
        ):

            def on_records(records: int, tokens: int, num_bytes: int) -> None:
                nonlocal text_read
                text_read += num_bytes
                if not is_table and self.max_samples is None and text_read:
                    # An estimate, for the time that is left; compressed files are guessed at.
                    bar.total = max(bar.done + records, round((bar.done + records) * max(1.0, size / text_read)))
                bar.advance(records, tokens=tokens, **({"records/s": bar.rate()} if bar.done else {}))

            build_store(
                aside,
                self.files,
                self.encoder,
                self.form,
                on_bad_line=self.on_bad_line,
                max_samples=self.max_samples,
                fold=self.fold,
                num_workers=num_workers,
                on_records=on_records,
            )
            bar.total = None

    def _report(self, left_out: list[str], count: int, total: int) -> None:
        if count:
            print(f"{self.path.name}: left out {count} of {total} records, for example:")
            for reason in left_out[:3]:
                print(f"  {visible(reason)}")


@contextlib.contextmanager
def _only_one(path: Path, what: str) -> Iterator[None]:
    """Waits, saying so once, until no other process holds the lock; the system frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    start = time.monotonic()
    try:
        lock.acquire(timeout=5)
    except Timeout:
        print(f"{what}: process {os.getpid()} waits for another one that does it")
        lock.acquire()
        print(f"{what}: process {os.getpid()} waited for {time.monotonic() - start:.0f} s")
    try:
        yield
    finally:
        lock.release()
