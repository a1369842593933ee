"""Prepare a corpus: raw data -> records, a benchmark from held-out items, and a small vocabulary.

    python -m keju.prepare_data --corpus idiom --output_dir runs/data/idiom

The same arguments give the same bytes. A folder that already holds them is used as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from keju.data_prepare.data_set import DataSet, corpus_module
from keju.data_prepare.folder import REPORT, describe, new_folder, reusable_report
from keju.data_prepare.vocabulary import save_tokenizer, train_sentencepiece
from keju.models.loading import named_sizes, size_fields
from keju.records.writing import write_json, write_jsonl
from keju.training.arguments import parse_arguments
from keju.training.launch import run_stage

TOKENIZER = "tokenizer"


@dataclass
class PrepareDataArguments:
    output_dir: str = field(metadata={"help": "folder of the data set"})
    corpus: str = field(default="idiom", metadata={"help": "a file of data_prepare/corpora/"})
    seed: int = field(default=42, metadata={"help": "decides the splits, wrong answers and wording"})
    max_idioms: int | None = field(default=None, metadata={"help": "use this many items of the corpus (default: all)"})
    vocab_size: int = field(default=8000, metadata={"help": "pieces of the vocabulary, at most"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace another data set in output_dir"})


def main() -> None:
    (args,) = parse_arguments(PrepareDataArguments, description=__doc__.splitlines()[0])
    console = Console(highlight=False)
    corpus = corpus_module(args.corpus)
    made_from = {
        "corpus": args.corpus,
        "version": corpus.VERSION,
        "source": corpus.source(),
        "seed": args.seed,
        "max_idioms": args.max_idioms,
        "vocab_size": args.vocab_size,
        "tokenizers": family_tokenizers(),
    }
    report = reusable_report(args.output_dir, made_from, args.overwrite_output_dir)
    if report is not None:
        console.print(f"{args.output_dir} already holds this data set; nothing to do.", soft_wrap=True)
        show(console, Path(args.output_dir), report)
        return

    def progress(items: Iterable, label: str) -> Iterable:
        return track(items, description=label.ljust(20), console=console)

    data_set = corpus.build(seed=args.seed, max_items=args.max_idioms, track=progress)
    with console.status("training the vocabulary"):
        vocabulary = train_sentencepiece(data_set.vocabulary_texts, args.vocab_size)
    with new_folder(args.output_dir) as folder:
        for name, rows in data_set.files.items():
            write_jsonl(folder / name, rows)
        save_tokenizer(vocabulary, folder / TOKENIZER)
        for size, config in family_tokenizers().items():
            save_family_tokenizer(vocabulary, config, folder / f"{TOKENIZER}-{size}")
        report = describe(folder, made_from) | summary(data_set)
        write_json(folder / REPORT, report)
    show(console, Path(args.output_dir), report)


def family_tokenizers() -> dict[str, dict[str, Any]]:
    """Named size -> the tokenizer_config.json by which a vocabulary becomes one for it. Models that read a mask or a
    start token need more than pieces of text; the others take any vocabulary."""
    fields = {name: size_fields(name).get("tokenizer") for name in named_sizes()}
    return {name: config for name, config in fields.items() if config is not None}


def save_family_tokenizer(sentencepiece_model: bytes, config: dict[str, Any], folder: Path) -> None:
    """A tokenizer folder as such models are published with: SentencePiece's file and its configuration."""
    folder.mkdir()
    file_name = REGISTERED_TOKENIZER_CLASSES[config["tokenizer_class"]].vocab_files_names["vocab_file"]
    (folder / file_name).write_bytes(sentencepiece_model)
    write_json(folder / "tokenizer_config.json", config)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # writes out what the family adds


def summary(data_set: DataSet) -> dict[str, Any]:
    """What went in, what came out, what was dropped and why."""
    return {
        "rows": {name: len(rows) for name, rows in data_set.files.items()},
        "splits": data_set.splits,
        "steps": [step.as_row() for step in data_set.steps],
    }


def show(console: Console, folder: Path, report: dict[str, Any]) -> None:
    """Print what the folder holds: rows and bytes of each file, what was dropped, and one row of each kind."""
    table = Table(title=str(folder), title_justify="left")
    for heading, side in (("file", "left"), ("rows", "right"), ("KiB", "right")):
        table.add_column(heading, justify=side)
    examples = {}
    for name, size in report["contents"].items():
        table.add_row(name, str(report["rows"].get(name, "")), f"{size / 1024:,.0f}")
        if name in report["rows"]:
            with (folder / name).open(encoding="utf-8") as file:
                row = file.readline().strip()
            examples.setdefault(tuple(json.loads(row)), f"{name}: {row}")  # one of each kind of row
    console.print(table)
    for example in examples.values():
        console.print(example, markup=False)
    for step in report["steps"]:
        console.print(f"{step['name']}: {step['rows_in']} -> {step['rows_out']}")
        for reason, dropped in step["dropped"].items():
            console.print(f"  {dropped['rows']} {reason}: {dropped['examples'][0]}", markup=False)


if __name__ == "__main__":
    run_stage(main)
