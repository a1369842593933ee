"""What decides the trees of a record file, as a hash: the data, the tokenizer, the settings, this code's version."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from keju.encoding.array_file import file_digest
from keju.encoding.encoder import Encoder
from keju.records.shards import suffix_of
from keju.records.writing import write_json

# Raise it when the same records give other trees, or a store another layout: a change of keju.encoding, keju.records
# or keju.tokenizers. tests/encoding/test_token_store.py notices when the trees of a few records change.
VERSION = 4
# Of files that tokenizers save: what does not change a token.
NO_CONTENT = {"is_local", "local_files_only", "name_or_path", "transformers_version", "padding", "truncation"}
LIBRARIES = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "jieba")


def store_key(
    digests: Sequence[str],
    files: Sequence[Path],
    encoder: Encoder,
    form: str,
    *,
    on_bad_line: str,
    max_samples: int | None,
    fold: tuple[int, int] | None,
) -> str:
    """Hex. digests: of the files' bytes, in order (see `data_digest`); fold: number and count."""
    content = {
        "version": VERSION,
        "libraries": {name: version(name) for name in LIBRARIES},
        "data": [[suffix_of(file), digest] for file, digest in zip(files, digests, strict=True)],
        "tokenizer": tokenizer_digest(encoder.tokenizer),
        "encoder": [encoder.max_length, encoder.on_long, asdict(encoder.chats)],
        "form": form,
        "records": [on_bad_line, max_samples, fold],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what the tokenizer would save: vocabulary, special tokens, chat template, settings; and of its class."""
    digest = hashlib.sha256(type(tokenizer).__qualname__.encode())
    digest.update(json.dumps(tokenizer.chat_template, sort_keys=True).encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                if path.suffix == ".json" and isinstance(value := json.loads(data), dict):
                    kept = {name: field for name, field in value.items() if name not in NO_CONTENT}
                    data = json.dumps(kept, ensure_ascii=False).encode()
                digest.update(f"\0{path.relative_to(folder).as_posix()}\0{len(data)}\0".encode())
                digest.update(data)
    return digest.hexdigest()


def data_digest(file: Path, memory: Path) -> str:
    """SHA-256 of a file. `memory`: a folder that keeps it for as long as size, times and inode stay the same."""
    state = file.stat()
    known = memory / (hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32] + ".json")
    # The last is that of any change, which nobody can set back as a copy sets the one before.
    seen = [state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns]
    try:
        row = json.loads(known.read_text(encoding="utf-8"))
        if row["seen"] == seen:
            return row["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not known, or half a file: read the data again
    digest = file_digest(file)
    with contextlib.suppress(OSError):  # without a memory it is only slower
        write_json(known, {"seen": seen, "sha256": digest})
    return digest
