"""Text files of which each is one document."""

from __future__ import annotations

from pathlib import Path

from keju.data_prepare.formats.raw_lines import blocks, encoding_of

MAX_BYTES = 1 << 28


def text_of(path: Path) -> str | ValueError:
    """The text of a file without blank lines around it, or why it is none."""
    encoding, data = encoding_of(path), bytearray()
    for block in blocks(path):
        data += block
        if len(data) > MAX_BYTES:
            return ValueError(f"a document of more than {MAX_BYTES >> 20} MiB; cut it, or read a document a line")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode(encoding).replace("\r\n", "\n").strip("\n")
    except UnicodeDecodeError as error:
        return ValueError(f"not {encoding.upper()} text ({error.reason} at byte {error.start})")
