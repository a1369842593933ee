"""Arrays that are longer than memory as .npy files: written by appending, read by ranges of rows.

Ranges are read from the file (pread) and not mapped: pages of a mapping count as the memory of the process that
touched them, so that a pass over a large file would look like, and be killed for, using as much as the file has.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from keju.errors import UserError

BLOCK = 1 << 16  # bytes that have a checksum of their own


class ArrayWriter:
    """Appends rows to a new .npy file of `dtype` and, with `width`, two dimensions."""

    def __init__(self, path: Path, dtype: str, width: int | None = None) -> None:
        self.path, self.dtype, self.width = path, np.dtype(dtype), width
        self.num_rows = 0
        self._file = path.open("xb")
        self._start = self._write_header()

    def append(self, rows: np.ndarray) -> None:
        cast = np.ascontiguousarray(rows, dtype=self.dtype)
        assert cast.shape[1:] == (() if self.width is None else (self.width,))
        self._file.write(cast.data.cast("B") if cast.size else b"")
        self.num_rows += len(cast)

    def close(self) -> None:
        """Completes the file and brings it to the disk."""
        self._file.seek(0)
        assert self._write_header() == self._start  # numpy leaves room for the first dimension to grow
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write_header(self) -> int:
        shape = (self.num_rows,) if self.width is None else (self.num_rows, self.width)
        npy.write_array_header_1_0(
            self._file, {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        )
        return self._file.tell()


class DamagedFile(UserError):
    """A file that does not hold what was written to it."""


class ArrayReader:
    """Rows of a .npy file. Copies to other processes open the file themselves. Raises UserError for a damaged one.

    checksums: of its blocks (see `file_checksums`); each block is compared when something is read from it for the first
    time, so that a file of any size is checked without being read ahead. None: nothing is compared.
    """

    def __init__(self, path: Path, checksums: np.ndarray | None = None) -> None:
        self.path, self.checksums = path, checksums
        self._is_checked = np.zeros(0 if checksums is None else len(checksums), bool)
        self._descriptor = os.open(path, os.O_RDONLY)
        self._check(0, 1)
        with path.open("rb") as file:
            if npy.read_magic(file) != (1, 0):
                raise UserError(f"{path}: not a .npy file of version 1")
            self.shape, _, self.dtype = npy.read_array_header_1_0(file)
            self._start = file.tell()
        self._row_bytes = self.dtype.itemsize * (self.shape[1] if len(self.shape) > 1 else 1)
        self.num_bytes = self._start + self.shape[0] * self._row_bytes
        if path.stat().st_size != self.num_bytes:
            raise UserError(f"{path}: {path.stat().st_size} bytes instead of {self.num_bytes}")

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, end: int) -> np.ndarray:
        """Rows start..end (half open). Raises OSError where the file cannot be read to there."""
        size, first = (end - start) * self._row_bytes, self._start + start * self._row_bytes
        self._check(first, first + size)
        data = self._read(first, size)
        if len(data) != size:
            raise OSError(f"{self.path}: ends before row {end}; it was cut while it was read")
        return np.frombuffer(data, self.dtype).reshape(end - start, *self.shape[1:])

    def _read(self, start: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, start)
        while 0 < len(data) < size:  # the system gives at most 2 GB at once
            more = os.pread(self._descriptor, size - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def _check(self, start: int, end: int) -> None:
        """Raises DamagedFile unless the blocks of the bytes start..end are as they were written."""
        for block in range(start // BLOCK, min(-(-end // BLOCK), len(self._is_checked))):
            if self._is_checked[block]:
                continue
            if zlib.crc32(self._read(block * BLOCK, BLOCK)) != self.checksums[block]:
                raise DamagedFile(
                    f"{self.path}: bytes {block * BLOCK} to {(block + 1) * BLOCK} are not what was written; "
                    f"delete {self.path.parent}, and it is made anew"
                )
            self._is_checked[block] = True

    def __getstate__(self) -> tuple[Path, np.ndarray | None]:
        return self.path, self.checksums

    def __setstate__(self, state: tuple[Path, np.ndarray | None]) -> None:
        self.__init__(*state)

    def __del__(self) -> None:
        if "_descriptor" in self.__dict__:
            os.close(self._descriptor)


def file_checksums(path: Path) -> tuple[str, np.ndarray]:
    """SHA-256 of a file, hex, and the CRC-32 of each block of it, uint32."""
    digest, sums = hashlib.sha256(), array("I")
    with path.open("rb") as file:
        while piece := file.read(16 * BLOCK):
            digest.update(piece)
            sums.extend(zlib.crc32(piece[start : start + BLOCK]) for start in range(0, len(piece), BLOCK))
    return digest.hexdigest(), np.array(sums, np.uint32)
