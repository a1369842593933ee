"""Tables: rows of Parquet and Arrow files, of which a cell may unpack to far more than its file has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keju.errors import UserError
from keju.records.opening import MAX_LINE
from keju.records.shards import plain_suffix
from keju.records.values import without_nulls

BATCH = 256  # rows


def table_rows(path: Path, groups: Sequence[int] | None = None, first: int = 1) -> Iterator[tuple[int, Any]]:
    """(row number, the row or a UserError that says what is wrong with it) of an Arrow or Parquet file.

    groups: row groups of a Parquet file (None: all). first: the number of the first row of them.
    Raises UserError where the file is damaged, or a row group could only be read into too much memory.
    """
    import pyarrow

    number = first - 1
    try:
        for batch in _batches(path, groups):
            for row in _rows(batch):
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged after row {number} ({reason}); make or copy it again") from error


def parquet_file(path: Path) -> Any:
    """Raises UserError for something else."""
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged, or no Parquet file ({str(error).splitlines()[0]})") from error


def _batches(path: Path, groups: Sequence[int] | None) -> Iterator[Any]:
    import pyarrow.ipc

    if plain_suffix(path) == ".parquet":
        file = parquet_file(path)
        groups = range(file.metadata.num_row_groups) if groups is None else groups
        for group in groups:
            _check_group(path, file.metadata.row_group(group), group)
        yield from file.iter_batches(batch_size=BATCH, row_groups=list(groups))
        return
    with pyarrow.OSFile(str(path)) as file:
        magic = file.read(6)
        file.seek(0)
        if magic == b"ARROW1":  # the file format; a stream, as `datasets` keeps it, has no magic number
            reader = pyarrow.ipc.open_file(file)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(file)


def _check_group(path: Path, group: Any, number: int) -> None:
    """Raises UserError where the cells of a column have more bytes than rows may have."""
    for column in map(group.column, range(group.num_columns)):
        if column.total_uncompressed_size > MAX_LINE * max(1, group.num_rows):
            size = column.total_uncompressed_size >> 20
            raise UserError(
                f"{path}: row group {number + 1} unpacks to {size} MiB in {group.num_rows} rows; a row may have "
                f"{MAX_LINE >> 20} MiB"
            )


def _rows(batch: Any) -> Iterator[Any]:
    # No row takes more than the batch: also where all rows refer to one entry of a dictionary, only as many of them
    # are Python objects at once as have the size of a row.
    step = min(max(MAX_LINE // max(1, batch.nbytes), 1), len(batch) or 1)
    for start in range(0, len(batch), step):
        part = batch.slice(start, step)
        if step == 1 and _num_bytes(part) > MAX_LINE:
            yield UserError(f"a row of more than {MAX_LINE >> 20} MiB")
        else:
            yield from map(without_nulls, part.to_pylist())


def _num_bytes(row: Any) -> int:
    import pyarrow

    columns = (one.dictionary_decode() if pyarrow.types.is_dictionary(one.type) else one for one in row.columns)
    return sum(column.nbytes for column in columns)
