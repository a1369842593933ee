"""Arrays that are longer than memory as .npy files: written by appending, read by ranges of rows.

Ranges are read from the file (pread) and not mapped: pages of a mapping count as the memory of the process that
touched them, so that a pass over a large file would look like, and be killed for, using as much as the file has.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.lib import format as npy


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


class ArrayReader:
    """Rows of a .npy file. Copies to other processes open the file themselves. Raises ValueError for a damaged one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if npy.read_magic(file) != (1, 0):
                raise ValueError(f"{path}: not a .npy file of version 1")
            self.shape, _, self.dtype = npy.read_array_header_1_0(file)
            self._start = file.tell()
        self._row_bytes = self.dtype.itemsize * (self.shape[1] if len(self.shape) > 1 else 1)
        self.num_bytes = self._start + self.shape[0] * self._row_bytes
        if path.stat().st_size != self.num_bytes:
            raise ValueError(f"{path}: {path.stat().st_size} bytes instead of {self.num_bytes}")
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, end: int) -> np.ndarray:
        """Rows start..end (half open). Raises OSError where the file cannot be read to there."""
        size = (end - start) * self._row_bytes
        data = os.pread(self._descriptor, size, self._start + start * self._row_bytes)
        while 0 < len(data) < size:  # the system gives at most 2 GB at once
            more = os.pread(self._descriptor, size - len(data), self._start + start * self._row_bytes + len(data))
            if not more:
                break
            data += more
        if len(data) != size:
            raise OSError(f"{self.path}: ends before row {end}; it was cut while it was read")
        return np.frombuffer(data, self.dtype).reshape(end - start, *self.shape[1:])

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)

    def __del__(self) -> None:
        if "_descriptor" in self.__dict__:
            os.close(self._descriptor)
