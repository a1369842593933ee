"""Evaluate a causal language model on benchmarks, zero- and few-shot.

python -m keju.eval_pretrain --model_name_or_path runs/pretrain --data_dir runs/data/idiom --output_dir runs/eval \
    --tasks idiom --num_shots 0 3
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from transformers import set_seed

from keju.encoding.encoder import Encoder
from keju.eval.evaluation import TaskResult, evaluate
from keju.eval.scoring import score_questions
from keju.eval.table import print_results
from keju.eval.task import load_task
from keju.models.loading import load_causal_lm, load_tokenizer
from keju.records.writing import write_json, write_jsonl
from keju.training.arguments import parse_arguments
from keju.training.launch import run_stage
from keju.training.plots import plot_bars
from keju.training.progress import Progress
from keju.training.run_folder import RunFolder
from keju.training.stage_model import verify_head


@dataclass
class EvalArguments:
    """What is evaluated, and how."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint folder or hub name."})
    data_dir: str = field(metadata={"help": "Folder of the benchmark files."})
    output_dir: str = field(metadata={"help": "Folder for results.json, predictions and the plot."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, where it is not the model's own."})
    chat_template: str | None = field(
        default=None, metadata={"help": "Chat template by name (llama2, vicuna, ziya ...), or a Jinja file."}
    )
    tasks: list[str] = field(default_factory=lambda: ["idiom"], metadata={"help": "Files of eval/tasks/, by name."})
    num_shots: list[int] = field(default_factory=lambda: [0], metadata={"help": "Examples before each question."})
    protocol: list[str] | None = field(
        default=None, metadata={"help": "Ways to ask, each is scored; by default the first that a task knows."}
    )
    apply_chat_template: bool = field(default=False, metadata={"help": "Ask in a conversation, not in plain text."})
    max_items: int | None = field(default=None, metadata={"help": "Score a random part of each task."})
    max_length: int | None = field(default=None, metadata={"help": "Longest prompt with a choice; the model's limit."})
    token_budget: int = field(default=4096, metadata={"help": "Tokens of one packed row: the unit of memory."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Precision."})
    seed: int = field(
        default=42, metadata={"help": "Decides the shots, the items of --max_items, and the weights of a named size."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that --output_dir holds."})

    def __post_init__(self):
        for name in ("max_items", "max_length", "token_budget"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least 1")
        if min(self.num_shots) < 0:
            raise ValueError(f"--num_shots {min(self.num_shots)}: must be at least 0")


def main() -> None:
    (args,) = parse_arguments(EvalArguments, description=__doc__.splitlines()[0])
    for name in args.tasks:
        load_task(name)  # a wrong name shows before the model loads
    folder = RunFolder(args.output_dir, "eval_pretrain", arguments=[args], overwrite=args.overwrite_output_dir)
    flag = "--tokenizer_name" if args.tokenizer_name else "--model_name_or_path"
    tokenizer = load_tokenizer(
        args.tokenizer_name or args.model_name_or_path, flag=flag, chat_template=args.chat_template
    )
    set_seed(args.seed)
    model = load_causal_lm(args.model_name_or_path, dtype=args.dtype, tokenizer=tokenizer)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    max_length = longest(model, args)
    encoder = Encoder(tokenizer, max_length)
    verify_head(model, encoder.prefix_ids("科举"))

    results = [
        run_task(name, protocol, num_shots, model, encoder, args, max_length)
        for name in dict.fromkeys(args.tasks)
        for protocol in dict.fromkeys(args.protocol or load_task(name).protocols[:1])
        for num_shots in dict.fromkeys(args.num_shots)
    ]
    for result in results:
        write_jsonl(folder.path / f"predictions_{label(result.summary)}.jsonl", result.rows)
    summaries = [result.summary for result in results]
    write_json(folder.path / "results.json", {"model": args.model_name_or_path, "results": summaries})
    draw(summaries, folder.path)
    print_results(summaries, args.model_name_or_path)
    folder.finish(accuracy={label(row): row["accuracy"] for row in summaries}, chance=summaries[0]["chance"])


def longest(model, args: EvalArguments) -> int:
    """Tokens of the longest prompt with a choice."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and args.max_length is not None and args.max_length > limit:
        raise ValueError(f"--max_length {args.max_length}: the model has {limit} positions")
    return args.max_length or limit or args.token_budget


def run_task(
    name: str, protocol: str, num_shots: int, model, encoder: Encoder, args: EvalArguments, max_length: int
) -> TaskResult:
    with Progress(None, f"{name} {protocol} {num_shots}-shot", unit="prompts") as bar:

        def on_progress(done: int, total: int, tokens: int) -> None:
            bar.total = total
            bar.advance(done - bar.done, tokens=tokens)

        result = evaluate(
            name,
            partial(score_questions, model, token_budget=args.token_budget),
            encoder,
            Path(args.data_dir).expanduser(),
            num_shots=num_shots,
            max_length=max_length,
            protocol=protocol,
            max_items=args.max_items,
            apply_chat_template=args.apply_chat_template,
            seed=args.seed,
            on_progress=on_progress,
        )
    print(f"The first prompt, as the model reads it:\n{result.example}\n")
    if result.summary["shots_dropped"]:
        print(
            f"{result.summary['items_with_shots_dropped']} of {result.summary['num_items']} prompts had no room for "
            f"all {num_shots} shots in {max_length} tokens; {result.summary['shots_dropped']} were left out."
        )
    return result


def label(summary: dict) -> str:
    return f"{summary['task']}_{summary['protocol']}_{summary['num_shots']}shot"


def draw(summaries: list[dict], folder: Path) -> None:
    """accuracy.png: the main metric of each result with its interval, against chance."""
    values = {label(row): row["accuracy"] for row in summaries}
    errors = {
        label(row): (row["accuracy"] - row["interval"][0], row["interval"][1] - row["accuracy"]) for row in summaries
    }
    chances = {row["chance"] for row in summaries}
    plot_bars(
        values,
        folder / "accuracy.png",
        title="Accuracy with 95% intervals",
        errors=errors,
        chance=chances.pop() if len(chances) == 1 else None,
    )


if __name__ == "__main__":
    run_stage(main)
