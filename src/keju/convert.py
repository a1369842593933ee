"""Makes one checkpoint folder of another: pickles to safetensors, shards, other architectures, more tokens.

python -m keju.convert --model_name_or_path Baichuan2-7B-Base --output_dir runs/baichuan2-llama --to llama

The output appears when the logits of the new model, read from its files, equal those of the old one in float32 (rows
of random tokens, padded on either side). Neither model is in memory together with the other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from keju.conversion.checkpoint import Checkpoint
from keju.conversion.output_folder import check_output, own_files
from keju.conversion.pair import Converted
from keju.conversion.shards import parse_size, write_shards
from keju.conversion.targets import find_pair
from keju.conversion.verification import largest_difference, sample_logits
from keju.conversion.vocabulary import (
    Extension,
    add_pieces,
    add_tokens,
    check_pieces,
    check_saved,
    extend,
    read_tokens,
    vocabulary_weights,
)
from keju.errors import UserError, renamed_options
from keju.models.architecture import without_weights
from keju.models.checkpoint_files import read_object
from keju.models.configurations import load_config
from keju.models.loading import DTYPES, check_vocabulary, load_causal_lm, load_checked, read_tokenizer
from keju.records.locks import only_writer
from keju.records.writing import whole_folder, write_json
from keju.training.arguments import parse_arguments
from keju.training.launch import run_stage
from keju.training.progress import Progress, compact

# What goes with a tokenizer, by name; Python files never do.
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*", "*.model",
    "*.tiktoken",
)  # fmt: skip


@dataclass
class ConvertArguments:
    """What becomes of which folder."""

    model_name_or_path: str = field(metadata={"help": "Folder of the model that is read."})
    output_dir: str = field(metadata={"help": "Folder for the new one."})
    to: Literal["safetensors", "llama", "qwen2", "glm", "baichuan", "internlm", "xverse", "qwen", "chatglm"] = field(
        default="safetensors",
        metadata={
            "help": "Keep the architecture, or: Baichuan, InternLM and XVERSE to llama, Qwen to qwen2, ChatGLM2 and 3 "
            "to glm, or back."
        },
    )
    max_shard_size: str = field(default="5GB", metadata={"help": "Largest weight file; a large one makes one file."})
    dtype: Literal["same", "float32", "bfloat16", "float16"] = field(
        default="same", metadata={"help": "Precision of the new weights."}
    )
    add_tokens: list[str] | None = field(default=None, metadata={"help": "New tokens."})
    add_special_tokens: list[str] | None = field(default=None, metadata={"help": "New special tokens."})
    add_tokens_file: str | None = field(default=None, metadata={"help": "File of new tokens, one a line."})
    add_pieces: str | None = field(
        default=None, metadata={"help": "SentencePiece model whose pieces are appended to the tokenizer's own."}
    )
    new_embeddings: Literal["mean", "pieces"] = field(
        default="mean",
        metadata={"help": "Rows of new tokens: the mean of all, or of the tokens that their text was made of."},
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the model in --output_dir."})


@renamed_options(tokenizer_name="model_name_or_path")
def main() -> None:
    (args,) = parse_arguments(ConvertArguments, description=__doc__)
    source, output = Path(args.model_name_or_path), Path(args.output_dir)
    if not source.is_dir():
        raise UserError(f"--model_name_or_path: {source} is not a folder")
    if (source / "adapter_config.json").is_file():
        raise UserError(
            f"--model_name_or_path: {source} holds adapters; make one model of them and their base first: "
            f"MODEL={source} OUTPUT_DIR=... bash examples/merge.sh"
        )
    check_output(output, source, overwrite=args.overwrite_output_dir)
    with only_writer(output, own=own_files), tempfile.TemporaryDirectory() as scratch:
        convert(args, Path(scratch))


def convert(args: ConvertArguments, scratch: Path) -> None:
    source, output = Path(args.model_name_or_path), Path(args.output_dir)
    check_output(output, source, overwrite=args.overwrite_output_dir)  # again, as the only one that writes there
    max_bytes = parse_size(args.max_shard_size)
    config = load_config(str(source))
    checkpoint = Checkpoint(source, DTYPES.get(args.dtype))
    has_tokenizer = any((source / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    tokenizer = read_tokenizer(str(source)) if has_tokenizer else None
    skeleton = without_weights(AutoModelForCausalLM, config)
    if tokenizer is not None:
        check_vocabulary(skeleton, tokenizer)
    tokenizer, extension = with_more_tokens(tokenizer, args, scratch)

    target, tensors = converted(args.to, config, checkpoint, skeleton)
    new_skeleton = without_weights(AutoModelForCausalLM, target)

    # Before anything is written: this also finds weights that are missing or of another shape.
    model, _ = load_checked(
        type(skeleton).from_pretrained,
        None,
        where=str(source),
        config=config,
        state_dict=dict(checkpoint),
        dtype=torch.float32,
    )
    num_tokens = skeleton.get_input_embeddings().num_embeddings if extension is None else extension.num_old
    before = sample_logits(model, num_tokens)
    del model

    items = without_tied(tensors, new_skeleton)
    if extension is not None:
        items = extend(items, vocabulary_weights(new_skeleton), extension, args.new_embeddings)
        target.vocab_size = max(target.vocab_size, extension.num_tokens)
    target.architectures = [type(new_skeleton).__name__]
    target.dtype = next(tensor.dtype for tensor in checkpoint.values() if tensor.is_floating_point())
    vars(target).pop("auto_map", None)  # names code to download
    with whole_folder(output, own=own_files) as folder:
        with Progress(len(tensors), "convert", unit="tensors") as bar:
            files = write_shards(counted(items, bar), folder, max_bytes)
        target.save_pretrained(folder)
        for path in source.glob("generation_config.json"):
            shutil.copy(path, folder / path.name)
        if extension is not None:
            tokenizer.save_pretrained(folder)
            check = check_pieces if args.add_pieces else check_saved
            check(read_tokenizer(str(folder)), extension)
        elif tokenizer is not None:
            copy_tokenizer(source, folder)
        model = load_causal_lm(str(folder), trees=False)
        difference = largest_difference(before, sample_logits(model, num_tokens))
        rows = {
            "read": f"{len(checkpoint)} tensors, {in_files(checkpoint.files)}",
            "written": in_files(files),
            "model": f"{type(skeleton).__name__} -> {type(model).__name__}, "
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters",
            "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer)} tokens" if has_tokenizer else "none",
            "logits": f"equal, largest difference {difference:.2g} at a scale of {before.abs().max().item():.2g}",
        }
    Console().print(figures(rows))
    print(f"{output} is complete.")


def with_more_tokens(
    tokenizer: PreTrainedTokenizerBase | None, args: ConvertArguments, scratch: Path
) -> tuple[PreTrainedTokenizerBase | None, Extension | None]:
    """The tokenizer with the tokens that are asked for, if any; its files may lie in the folder `scratch`."""
    plain = [*(args.add_tokens or []), *(read_tokens(args.add_tokens_file) if args.add_tokens_file else [])]
    special = args.add_special_tokens or []
    if not (plain or special or args.add_pieces):
        return tokenizer, None
    if tokenizer is None:
        raise UserError(f"--add_tokens: {args.model_name_or_path} holds no tokenizer")
    if args.add_pieces and (plain or special):
        raise UserError("--add_pieces and --add_tokens: give them one after the other")
    if args.add_pieces:
        return add_pieces(tokenizer, args.add_pieces, scratch)
    return tokenizer, add_tokens(tokenizer, plain, special)


def converted(
    to: str, config: PreTrainedConfig, checkpoint: Checkpoint, skeleton: PreTrainedModel
) -> tuple[PreTrainedConfig, Mapping[str, torch.Tensor]]:
    """Config and tensors of the architecture `to`; those of the checkpoint as they are where it stays."""
    if to == "safetensors":
        return config, checkpoint
    pair, forward = find_pair(config, to)
    target = pair.to_theirs(config) if forward else pair.to_ours(config)
    model = without_weights(AutoModelForCausalLM, target)
    tensors = Converted(
        checkpoint,
        [name for name in model.state_dict() if name not in model.all_tied_weights_keys],
        pair,
        ours=config if forward else target,
        theirs=target if forward else config,
        forward=forward,
    )
    check_unused(tensors.unused(), skeleton)
    return target, tensors


def check_unused(names: list[str], skeleton: PreTrainedModel) -> None:
    """Raises UserError for a tensor that the converted model would lose, unless the model had no use for it."""
    lost = sorted(set(names) & set(skeleton.state_dict()) - set(skeleton.all_tied_weights_keys))
    if lost:
        raise UserError(f"--model_name_or_path: the new model has no place for {lost[0]} and {len(lost) - 1} others")


def without_tied(tensors: Mapping[str, torch.Tensor], model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The items of `tensors`, but for copies that the model ties to another of them."""
    for name in tensors:
        tensor, original = tensors[name], model.all_tied_weights_keys.get(name)
        if original is None or original not in tensors or not torch.equal(tensor, tensors[original]):
            yield name, tensor


def counted(items: Iterator[tuple[str, torch.Tensor]], bar: Progress) -> Iterator[tuple[str, torch.Tensor]]:
    for item in items:
        yield item
        bar.advance()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the files of a tokenizer as they are, but for the code that they name."""
    for path in {path for pattern in TOKENIZER_FILES for path in source.glob(pattern)}:
        if path.name == "tokenizer_config.json":
            fields = read_object(path)
            fields.pop("auto_map", None)
            write_json(folder / path.name, fields)
        elif path.is_file() and path.suffix != ".py":
            shutil.copy(path, folder / path.name)


def in_files(paths: Collection[Path]) -> str:
    return f"{compact(sum(path.stat().st_size for path in paths))}B in {len(paths)} file{'s' * (len(paths) > 1)}"


def figures(rows: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


if __name__ == "__main__":
    run_stage(main)
