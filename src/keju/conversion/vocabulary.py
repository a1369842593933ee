"""More tokens: a tokenizer that has them, and rows for them in the embedding and the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from keju.errors import UserError
from keju.tokenizers.sentencepiece_family import SentencePieceFamily


@dataclass(frozen=True)
class Extension:
    """New tokens, with ids from `num_old` on, the plain ones first. pieces: the old tokens that each was made of."""

    plain: tuple[str, ...]
    special: tuple[str, ...]
    num_old: int
    pieces: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.plain + self.special

    @property
    def num_tokens(self) -> int:
        return self.num_old + len(self.tokens)


def read_tokens(path: str | Path) -> list[str]:
    """One token a line; blank lines do not count. Raises UserError naming the line of one that is there twice."""
    first: dict[str, int] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        token = line.strip()
        if token in first:
            raise UserError(f"{path}:{number}: {token!r} is in line {first[token]} already")
        if token:
            first[token] = number
    return list(first)


def add_tokens(tokenizer: PreTrainedTokenizerBase, plain: Sequence[str], special: Sequence[str]) -> Extension:
    """Adds tokens to `tokenizer`, `plain` ones before `special` ones. Raises UserError for tokens that it has."""
    tokens = (*plain, *special)
    known = tokenizer.get_vocab()  # keys of Qwen's are bytes
    for number, token in enumerate(tokens):
        if not token.strip() or token in tokens[:number]:
            raise UserError(f"{token!r} is blank or there twice", option="add_tokens")
        if token in known or token.encode() in known:
            raise UserError(f"{token!r} is a token of this {type(tokenizer).__name__} already", option="add_tokens")
    num_old = max(known.values()) + 1
    pieces = tuple(tuple(tokenizer.encode(token, add_special_tokens=False)) for token in tokens)
    tokenizer.add_tokens(list(plain))
    tokenizer.add_tokens(list(special), special_tokens=True)
    return Extension(tuple(plain), tuple(special), num_old, pieces)


def add_pieces(
    tokenizer: PreTrainedTokenizerBase, path: str | Path, folder: Path
) -> tuple[PreTrainedTokenizerBase, Extension]:
    """Appends the pieces of another SentencePiece model, `path`, to that of `tokenizer`, as Chinese-LLaMA was made:
    with score 0, so that they are merged before all older ones. The new tokenizer is saved in `folder`.

    Raises UserError for a tokenizer that is not made of one SentencePiece file, or has tokens beside it.
    """
    from sentencepiece import sentencepiece_model_pb2

    vocab_file = getattr(tokenizer, "vocab_file", None)
    if not isinstance(tokenizer, SentencePieceFamily) or len(tokenizer) != tokenizer.sp_model.get_piece_size():
        raise UserError(
            f"the tokens of this {type(tokenizer).__name__} are not those of one SentencePiece file",
            option="add_pieces",
        )
    old, other = sentencepiece_model_pb2.ModelProto(), sentencepiece_model_pb2.ModelProto()
    old.ParseFromString(Path(vocab_file).read_bytes())
    try:
        other.ParseFromString(Path(path).read_bytes())
    except Exception as error:  # protobuf's DecodeError
        raise UserError(f"{path} is not a SentencePiece model", option="add_pieces") from error
    known = {piece.piece for piece in old.pieces}
    normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    new = [piece.piece for piece in other.pieces if piece.type == normal and piece.piece not in known]
    if not new:
        raise UserError(f"{path} has no piece that is new", option="add_pieces")
    pieces = tuple(tuple(tokenizer.sp_model.encode(piece.replace("\u2581", " "))) for piece in new)
    for piece in new:
        old.pieces.add(piece=piece, score=0.0)
    tokenizer.save_pretrained(folder)
    (folder / Path(vocab_file).name).write_bytes(old.SerializeToString())
    return AutoTokenizer.from_pretrained(folder), Extension(tuple(new), (), len(known), pieces)


def check_pieces(tokenizer: PreTrainedTokenizerBase, extension: Extension) -> None:
    """Raises UserError unless the pieces have the ids that their rows have."""
    if tokenizer.convert_tokens_to_ids(list(extension.plain)) != list(range(extension.num_old, extension.num_tokens)):
        raise UserError("the saved tokenizer does not have the new pieces where their rows are", option="add_pieces")


def check_saved(tokenizer: PreTrainedTokenizerBase, extension: Extension) -> None:
    """Raises UserError unless a tokenizer that was saved and loaded has the new tokens, each in one piece."""
    for index, token in enumerate(extension.tokens, start=extension.num_old):
        kept = tokenizer.convert_tokens_to_ids(token) == index
        if kept and token in extension.plain:
            kept = tokenizer.encode(token, add_special_tokens=False) == [index]
        if not kept:
            raise UserError(f"a {type(tokenizer).__name__} does not keep {token!r} as one token", option="add_tokens")


def vocabulary_weights(model: PreTrainedModel) -> set[str]:
    """The parameters of `model` with a row for each token: embedding, head, and the head's bias."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in rows}


def extend(
    items: Iterable[tuple[str, torch.Tensor]], names: set[str], extension: Extension, how: str
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) as they come, those in `names` with rows for the new tokens.

    how: "mean" of the rows of all old tokens, or of the "pieces" of each. Spare rows behind the old tokens are used
    first, and the matrix grows only when they are used up.
    """
    for name, tensor in items:
        yield name, (_extended(tensor, extension, how) if name in names else tensor)


def _extended(weight: torch.Tensor, extension: Extension, how: str) -> torch.Tensor:
    old = weight[: extension.num_old].float()
    mean = old.mean(0)
    new = [old[list(pieces)].mean(0) if how == "pieces" and pieces else mean for pieces in extension.pieces]
    return torch.cat([weight[: extension.num_old], torch.stack(new).to(weight.dtype), weight[extension.num_tokens :]])
