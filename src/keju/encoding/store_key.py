"""What decides the trees of a record file, as a hash: the data, the tokenizer, the settings, this code's version."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from keju.encoding.encoder import Encoder
from keju.records.shards import suffix_of

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
