"""Evaluate a causal language model on benchmarks, zero- and few-shot.

python -m keju.eval_pretrain --model_name_or_path runs/pretrain --data_dir runs/data/idiom --output_dir runs/eval \
    --tasks idiom --num_shots 0 3
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import set_seed

from keju.encoding.encoder import Encoder
from keju.errors import UserError
from keju.eval.answers import Examinee
from keju.eval.evaluation import SMALL_MASS, PreparedTask, TaskResult, examine, prepare_task
from keju.eval.local_model import LocalModel
from keju.eval.recorded_model import RecordedModel
from keju.eval.served_model import ServedModel, check_url
from keju.eval.table import print_results
from keju.eval.task import expand_tasks, load_task
from keju.models.architecture import check_row, row_limit
from keju.models.loading import load_causal_lm
from keju.records.url_keys import url_without_key
from keju.records.writing import write_json, write_jsonl
from keju.report.evaluations import write_evaluation_report
from keju.training.arguments import BASE_MODEL_HELP, ThinkingArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.own_tokenizer import tokenizer_of
from keju.training.plots import plot_bars
from keju.training.progress import Progress
from keju.training.provenance import describe_versions
from keju.training.ranges import NonNegativeInt, PositiveInt, Seed
from keju.training.reference_cache import model_key
from keju.training.run_folder import RunFolder
from keju.training.terminal import visible
from keju.training.tree_guard import verify_trees

# Tokens of a packed row where --token_budget does not say: the least, and the most that long prompts are given.
ROW, LONG_ROW = 4096, 16384


@dataclass
class EvalArguments(ThinkingArguments):
    """What is evaluated, and how."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint folder or hub name; its name on --server_url."})
    data_dir: str = field(metadata={"help": "Folder of the benchmark files, or of the benchmarks' folders."})
    output_dir: str = field(metadata={"help": "Folder for results.json, predictions, plots and the report."})
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, where it is not the model's own."})
    chat_template: str | None = field(
        default=None, metadata={"help": "Chat template by name (llama2, vicuna, ziya ...), or a Jinja file."}
    )
    tasks: list[str] = field(
        default_factory=lambda: ["idiom"], metadata={"help": "Files of eval/tasks/ by name, or clue for its ten tasks."}
    )
    num_shots: list[NonNegativeInt] = field(
        default_factory=lambda: [0], metadata={"help": "Examples before each question."}
    )
    protocol: list[str] | None = field(
        default=None, metadata={"help": "Ways to ask, each is scored; by default the first that a task knows."}
    )
    split: str | None = field(
        default=None, metadata={"help": "What is scored: val, test, dev; by default the first of the task."}
    )
    subjects: list[str] | None = field(
        default=None,
        metadata={"help": "Only these subjects, categories or subsets of an examination: hard, STEM, law."},
    )
    apply_chat_template: bool = field(default=False, metadata={"help": "Ask in a conversation, not in plain text."})
    max_items: PositiveInt | None = field(default=None, metadata={"help": "Score a random part of each task."})
    on_bad_row: Literal["error", "skip"] = field(
        default="error", metadata={"help": "What a row does that is wrong, or longer than the model reads."}
    )
    max_length: PositiveInt | None = field(
        default=None, metadata={"help": "Longest prompt with a choice; the model's limit."}
    )
    token_budget: PositiveInt | None = field(
        default=None,
        metadata={"help": "Tokens of one packed row, the unit of memory; by default 4096, more for long prompts."},
    )
    batch_size: PositiveInt = field(default=16, metadata={"help": "Answers written at once; questions of one request."})
    server_url: str | None = field(
        default=None, metadata={"help": "Ask a served model: http://127.0.0.1:8000/v1 (completions API of vLLM)."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Precision."})
    seed: Seed = field(
        default=42, metadata={"help": "Decides the shots, the items of --max_items, and the weights of a named size."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that --output_dir holds."})

    def __post_init__(self):
        self.tasks = [name for text in self.tasks for name in text.split(",") if name]
        if self.server_url is not None:
            check_url(self.server_url)
            if self.tokenizer_name is None:
                raise UserError("--tokenizer_name is needed with --server_url: prompts are sent as tokens")
            if self.base_model is not None:
                raise UserError("--base_model: the model on --server_url is whole")


def main() -> None:
    (args,) = parse_arguments(EvalArguments, description=__doc__)
    tasks = plan(args)  # what is wrong with names and files shows before the model loads
    folder = RunFolder(
        args.output_dir,
        "eval_pretrain",
        arguments=[args],
        overwrite=args.overwrite_output_dir,
        goes_on=("model_name_or_path", "base_model", "tokenizer_name", "chat_template", "server_url", "dtype", "seed"),
    )
    tokenizer = tokenizer_of(args, args.chat_template)
    model, key, max_length = load_examinee(args, tokenizer)
    folder.begin()
    recorded = RecordedModel(model, folder.path / "scores.jsonl", key)
    encoder = Encoder(tokenizer, max_length, chats=args.chat_settings())

    header = {"model": args.model_name_or_path, "versions": describe_versions()["versions"]}
    summaries: list[dict[str, Any]] = []
    for prepared in tasks:
        result = run_task(prepared, recorded, encoder, max_length)
        summaries.append(result.summary)
        write_jsonl(folder.path / f"predictions_{label(result.summary)}.jsonl", result.rows)
        if result.submission is not None:
            write_json(folder.path / f"submission_{label(result.summary)}.json", result.submission)
        write_json(folder.path / "results.json", {**header, "results": summaries})
    draw(summaries, folder.path)
    print_results(summaries, args.model_name_or_path)
    report = write_evaluation_report([folder.path], folder.path)
    print(f"\n{folder.path / 'results.json'}\n{report}")
    folder.finish(
        accuracy={label(row): row["accuracy"] for row in summaries},
        chance=summaries[0]["chance"],
        num_recalled=recorded.num_recalled,
    )


def plan(args: EvalArguments) -> list[PreparedTask]:
    """All tasks, read, in all ways to ask and numbers of shots. A task is asked by those of --protocol that it knows,
    and one that does not know --split its own."""
    names = expand_tasks(args.tasks)
    tasks = {name: load_task(name) for name in names}
    for flag, values in (("protocol", args.protocol or []), ("split", [args.split] if args.split else [])):
        for value in values:
            if not any(value in getattr(task, f"{flag}s") for task in tasks.values()):
                known = [f"{name} knows {', '.join(getattr(task, f'{flag}s'))}" for name, task in tasks.items()]
                raise UserError(f"--{flag} {value}: {'; '.join(known)}")
    prepared = []
    for name, task in tasks.items():
        protocols = [protocol for protocol in dict.fromkeys(args.protocol or []) if protocol in task.protocols]
        if args.protocol and not protocols:
            raise UserError(f"--protocol {' '.join(args.protocol)}: {name} knows {', '.join(task.protocols)}")
        split = args.split if args.split in task.splits else task.splits[0]
        if args.split not in (None, split):
            print(f"warning: {name} has no split {args.split}, its {split} is scored", file=sys.stderr)
        prepared += [
            prepare_task(
                name,
                args.data_dir,
                num_shots=num_shots,
                protocol=protocol,
                split=split,
                subjects=args.subjects,
                max_items=args.max_items,
                apply_chat_template=args.apply_chat_template,
                on_bad_row=args.on_bad_row,
                seed=args.seed,
            )
            for protocol in protocols or [None]
            for num_shots in dict.fromkeys(args.num_shots)
        ]
    return prepared


def load_examinee(args: EvalArguments, tokenizer) -> tuple[Examinee, str, int]:
    """(the model that is examined, what its answers depend on, the longest prompt with a choice)"""
    if args.server_url is not None:
        model = ServedModel(args.server_url, args.model_name_or_path, args.batch_size)
        return model, f"{url_without_key(args.server_url)} {args.model_name_or_path}", args.max_length or ROW
    set_seed(args.seed)
    model = load_causal_lm(args.model_name_or_path, dtype=args.dtype, tokenizer=tokenizer, base=args.base_model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and args.max_length is not None and args.max_length > limit:
        raise UserError(f"--max_length {args.max_length}: the model has {limit} positions")
    rows = row_limit(model.config)
    if rows is not None:  # of what the layers see alike in trees and in rows
        limit = min(limit or rows.length, rows.length)
        check_row(model.config, args.max_length or 0)
    max_length = args.max_length or limit or args.token_budget or ROW
    token_budget = args.token_budget or max(ROW, min(max_length, LONG_ROW))
    verify_trees(model)
    return LocalModel(model, tokenizer, token_budget, args.batch_size), model_key(model), max_length


def run_task(prepared: PreparedTask, model: Examinee, encoder: Encoder, max_length: int) -> TaskResult:
    title = f"{prepared.name} {prepared.protocol} {prepared.num_shots}-shot"
    with Progress(len(prepared.items), title, unit="questions") as bar:

        def on_progress(done: int, total: int, tokens: int, accuracy: float | None) -> None:
            bar.total = total
            bar.advance(done - bar.done, tokens=tokens, **({} if accuracy is None else {"right": f"{accuracy:.1%}"}))

        result = examine(prepared, model, encoder, max_length=max_length, on_progress=on_progress)
    print(f"The first prompt, as the model reads it:\n{visible(shortened(result.example))}\n")
    for line in remarks(result.summary, max_length):
        print(f"warning: {line}", file=sys.stderr)
    return result


def shortened(text: str, length: int = 1500) -> str:
    """Beginning and end of a text: shots would fill the terminal."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}\n[... {len(text) - length} characters ...]\n{text[-length // 2 :]}"


def remarks(summary: dict[str, Any], max_length: int) -> list[str]:
    """What a reader of the result must know."""
    name, lines = label(summary), []
    if summary["shots_dropped"]:
        lines.append(
            f"{name}: {summary['items_with_shots_dropped']} of {summary['num_items']} prompts had no room for all "
            f"{summary['num_shots']} shots in {max_length} tokens; {summary['shots_dropped']} shots were left out"
        )
    if summary["items_among_shots"]:
        lines.append(f"{name}: {summary['items_among_shots']} questions also stand among their shots, in the files")
    if summary["num_skipped"]:
        lines.append(f"{name}: {summary['num_skipped']} rows were not scored, such as {summary['skipped'][0]}")
    if summary["num_shots_skipped"]:
        lines.append(f"{name}: {summary['num_shots_skipped']} rows are no shots, such as {summary['shots_skipped'][0]}")
    if summary["scored"] == "letter" and summary["choice_mass"] < SMALL_MASS:
        lines.append(
            f"{name}: the choices have {summary['choice_mass']:.2%} of the probability; the model expects something "
            "else there (see another --protocol, --apply_chat_template, more shots)"
        )
    return lines


def label(summary: dict[str, Any]) -> str:
    return f"{summary['task']}_{summary['protocol']}_{summary['num_shots']}shot"


def draw(summaries: Sequence[dict[str, Any]], folder: Path) -> None:
    """accuracy.png: the main metric of each result with its interval, against chance."""
    judged = [row for row in summaries if row["accuracy"] is not None]
    if not judged:
        return
    values = {label(row): row["accuracy"] for row in judged}
    errors = {
        label(row): (row["accuracy"] - row["interval"][0], row["interval"][1] - row["accuracy"]) for row in judged
    }
    chances = {row["chance"] for row in judged}
    plot_bars(
        values,
        folder / "accuracy.png",
        title="Accuracy with 95% intervals",
        errors=errors,
        chance=chances.pop() if len(chances) == 1 else None,
    )


if __name__ == "__main__":
    run_stage(main)
