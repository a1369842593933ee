"""Generate answers to the prompts of a record file, and compare them with its best answers where it has some.

python -m keju.pred_pretrain --model_name_or_path runs/sft --data_dir runs/data/idiom --output_dir runs/pred \
    --max_new_tokens 64
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed

from keju.encoding.dataset import nothing_usable
from keju.encoding.encoder import Encoder
from keju.encoding.refusals import Unencodable
from keju.errors import UserError
from keju.eval.text_metrics import compare, describe
from keju.models.generation import Response, generate_responses
from keju.models.loading import load_causal_lm
from keju.records.reading import first_records, read_records
from keju.records.record import ChatRecord, RankedRecord, Record, TextRecord
from keju.records.turns import turn_of
from keju.records.writing import write_json, write_jsonl
from keju.training.arguments import BASE_MODEL_HELP, ThinkingArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.own_tokenizer import tokenizer_of
from keju.training.progress import Progress
from keju.training.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, PositiveShare, Seed
from keju.training.run_folder import RunFolder
from keju.training.terminal import visible
from keju.training.tree_guard import verify_trees


@dataclass
class PredArguments(ThinkingArguments):
    """What is answered, and how."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint folder or hub name."})
    data_dir: str = field(metadata={"help": "Folder of the record files."})
    output_dir: str = field(metadata={"help": "Folder for predictions.jsonl and results.json."})
    test_filename: str = field(default="ranked_test.jsonl", metadata={"help": "Records of any kind, in --data_dir."})
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, where it is not the model's own."})
    chat_template: str | None = field(
        default=None, metadata={"help": "Chat template by name (llama2, vicuna, ziya ...), or a Jinja file."}
    )
    max_new_tokens: PositiveInt = field(default=128, metadata={"help": "An answer is cut off there."})
    temperature: NonNegativeFloat = field(
        default=0.0, metadata={"help": "0 takes the likeliest token; above, answers are sampled."}
    )
    top_p: PositiveShare = field(
        default=1.0, metadata={"help": "Sample from the likeliest tokens with this much probability."}
    )
    top_k: NonNegativeInt = field(
        default=0, metadata={"help": "Sample from so many of the likeliest tokens; 0: from all."}
    )
    num_return_sequences: PositiveInt = field(default=1, metadata={"help": "Answers to each prompt."})
    batch_size: PositiveInt = field(default=16, metadata={"help": "Answers that are generated at once."})
    max_samples: PositiveInt | None = field(default=None, metadata={"help": "Use at most so many records."})
    on_bad_line: Literal["error", "skip"] = field(default="error", metadata={"help": "What a bad line does."})
    on_long: Literal["error", "truncate"] = field(
        default="error", metadata={"help": "A prompt with no room for an answer stops the run, or loses its beginning."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Precision."})
    seed: Seed = field(default=42, metadata={"help": "Decides what is sampled, and the weights of a named size."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that --output_dir holds."})


def main() -> None:
    (args,) = parse_arguments(PredArguments, description=__doc__)
    folder = RunFolder(args.output_dir, "pred_pretrain", arguments=[args], overwrite=args.overwrite_output_dir)
    tokenizer = tokenizer_of(args, args.chat_template)
    set_seed(args.seed)
    model = load_causal_lm(args.model_name_or_path, dtype=args.dtype, tokenizer=tokenizer, base=args.base_model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    verify_trees(model)
    records = read_records(Path(args.data_dir).expanduser() / args.test_filename, on_bad_line=args.on_bad_line)
    records = first_records(records, args.max_samples, "--max_samples")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    encoder = Encoder(tokenizer, limit or 2**30, chats=args.chat_settings())
    room = limit and limit - args.max_new_tokens
    records, prompts = encoded_prompts(records, encoder, room, args.on_long, args.on_bad_line)
    print(f"The first prompt, as the model reads it:\n{visible(tokenizer.decode(prompts[0]))}\n")

    with Progress(len(prompts), "generate", unit="prompts") as bar:
        responses = generate_responses(
            model,
            tokenizer,
            prompts,
            max_new_tokens=args.max_new_tokens,
            num_responses=args.num_return_sequences,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            batch_size=args.batch_size,
            seed=args.seed,
            on_batch=lambda num_prompts, num_tokens: bar.advance(num_prompts, tokens=num_tokens),
        )
    rows = [as_row(record, answers, tokenizer) for record, answers in zip(records, responses, strict=True)]
    folder.begin()
    write_jsonl(folder.path / "predictions.jsonl", rows)
    figures = measure(rows)
    write_json(folder.path / "results.json", {"model": args.model_name_or_path, **figures})
    show(rows, figures)
    folder.finish(**figures)


def encoded_prompts(
    records: Sequence[Record], encoder: Encoder, room: int | None, on_long: str, on_bad_line: str
) -> tuple[list[Record], list[list[int]]]:
    """(the records that can be encoded, what the model reads of each); says which were left out."""
    kept, prompts, skipped = [], [], []
    for record in records:
        try:
            prompts.append(prompt_ids(record, encoder, room, on_long))
            kept.append(record)
        except Unencodable as reason:
            if on_bad_line == "error":
                raise
            skipped.append(str(reason))
    if not kept:
        raise UserError(nothing_usable(skipped, len(skipped)))
    if skipped:
        print(f"left out {len(skipped)} of {len(records)} records, such as {visible(skipped[0])}")
    return kept, prompts


def prompt_ids(record: Record, encoder: Encoder, room: int | None, on_long: str) -> list[int]:
    """What the model reads; at most `room` tokens (None: no limit)."""
    ids = encoder.record_prompt_ids(record, continues_text=True)
    if room is None or len(ids) <= room:
        return ids
    if on_long == "error" or room < 2:
        raise UserError(
            f"{record.where}: a prompt of {len(ids)} tokens leaves no room for --max_new_tokens in the positions of "
            "the model; lower it, or cut prompts with --on_long truncate"
        )
    return encoder.end_of(ids, room)


def reference(record: Record) -> str | None:
    """What a good answer looks like: the best one, or the one that the conversation goes on with."""
    if isinstance(record, RankedRecord):
        return record.best.text
    if isinstance(record, ChatRecord) and len(record.prompt) < len(record.messages):
        return record.messages[len(record.prompt)].content or None  # a turn that calls tools may say nothing
    return None


def as_row(record: Record, responses: Sequence[Response], tokenizer) -> dict[str, Any]:
    if isinstance(record, TextRecord):
        prompt: Any = record.text
    else:
        messages = record.messages if isinstance(record, RankedRecord) else record.prompt
        prompt = [turn_of(message) for message in messages]
    row = {
        "prompt": prompt,
        "responses": [tokenizer.decode(response.ids, skip_special_tokens=True).strip() for response in responses],
        "num_tokens": [len(response.ids) for response in responses],
        "finished": [response.finished for response in responses],
        "reference": reference(record),
        "where": record.where,
    }
    return {**row, "prefix": record.prefix} if isinstance(record, RankedRecord) and record.prefix else row


def measure(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all responses; those against references only over rows that have one."""
    responses = [text for row in rows for text in row["responses"]]
    pairs = [(text, row["reference"]) for row in rows if row["reference"] is not None for text in row["responses"]]
    finished = [flag for row in rows for flag in row["finished"]]
    tokens = [count for row in rows for count in row["num_tokens"]]
    return {
        "num_prompts": len(rows),
        "num_responses": len(responses),
        **describe(responses),
        "length_tokens": sum(tokens) / len(tokens),
        "fraction_finished": sum(finished) / len(finished),
        "empty": sum(not text for text in responses) / len(responses),
        **(compare(*map(list, zip(*pairs, strict=True))) if pairs else {}),
    }


def show(rows: Sequence[dict[str, Any]], figures: dict[str, Any]) -> None:
    """A few answers beside their references, then the figures."""
    for row in rows[:3]:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        print(visible(f"prompt:    {prompt}\nresponse:  {row['responses'][0]}"))
        print(visible(f"reference: {row['reference']}\n") if row["reference"] is not None else "")
    for name, value in figures.items():
        print(f"{name:>17}  {value:.4f}" if isinstance(value, float) else f"{name:>17}  {value}")


if __name__ == "__main__":
    run_stage(main)
