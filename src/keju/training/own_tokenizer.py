"""Which tokenizer a stage takes."""

from __future__ import annotations

from typing import Protocol

from transformers import PreTrainedTokenizerBase

from keju.errors import renamed_options
from keju.models.loading import load_tokenizer


class NamedTokenizer(Protocol):
    """What is read here of a stage's arguments."""

    model_name_or_path: str
    tokenizer_name: str | None


def tokenizer_of(args: NamedTokenizer, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that --tokenizer_name names, or else that of the model."""
    if args.tokenizer_name:
        return load_tokenizer(args.tokenizer_name, chat_template=chat_template)
    with renamed_options(tokenizer_name="model_name_or_path"):
        return load_tokenizer(args.model_name_or_path, chat_template=chat_template)
