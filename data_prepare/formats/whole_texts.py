"""Text files of which each is one document."""

from __future__ import annotations

import codecs
from pathlib import Path

from keju.data_prepare.raw_files import encoding_of
from keju.records.opening import read_bytes

MAX_BYTES = 1 << 28


def text_of(path: Path) -> str | ValueError:
    """The text of a file without blank lines around it, or why it is none."""
    encoding, data = encoding_of(path), read_bytes(path, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return ValueError(f"a document of more than {MAX_BYTES >> 20} MiB; cut it, or read a document a line")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode(encoding).replace("\r\n", "\n").strip("\n")
    except UnicodeDecodeError as error:
        return ValueError(f"not {encoding.upper()} text ({error.reason} at byte {error.start})")
