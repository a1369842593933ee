"""Prepare a corpus: raw data -> records, in splits that share no text, and a small vocabulary.

    python -m keju.prepare_data --corpus idiom --output_dir runs/data/idiom
    python -m keju.prepare_data --corpus couplet --raw_dir couplet --output_dir runs/data/couplet

The same arguments give the same bytes, on however many processes. A folder that already holds them is used as it is; a
run that was interrupted goes on where it was.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

from keju.data_prepare.cleaning.contamination import write_evaluation_ngrams
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.data_set import corpus_module
from keju.data_prepare.folder import REPORT, describe, own_files, reusable_report
from keju.data_prepare.in_memory import clean_rows, summary
from keju.data_prepare.mixing import parse_mix
from keju.data_prepare.pipeline import engine
from keju.data_prepare.pipeline.build import (
    begin,
    collect,
    has_training_rows,
    num_rows_held_out,
    remove_work,
    training_texts,
)
from keju.data_prepare.pipeline.plan import VERSION, Plan, fields_by_size
from keju.data_prepare.pipeline.rows import reply_of
from keju.data_prepare.pipeline.shards import length_class
from keju.data_prepare.pipeline.stages import evaluation_ngrams
from keju.data_prepare.raw_folder import (
    differing,
    fingerprint,
    lines_on_files,
    lines_on_splits,
    own_splits,
    share_of_own,
    states,
)
from keju.data_prepare.vocabulary import save_tokenizer, train_sentencepiece
from keju.encoding.workers import usable_cores
from keju.errors import UserError
from keju.models.configurations import named_sizes, size_fields
from keju.models.loading import load_tokenizer
from keju.records.locks import only_writer
from keju.records.reading import ON_BAD_LINE, iterate_rows
from keju.records.writing import whole_folder, write_json, write_jsonl
from keju.report.corpora import write_corpus_report
from keju.report.corpora_terminal import show_corpus
from keju.training.arguments import parse_arguments, parsed_object
from keju.training.cache_folder import cache_folder
from keju.training.launch import run_stage
from keju.training.progress import Progress
from keju.training.ranges import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Seed

TOKENIZER = "tokenizer"
PAGE = "report.html"
TOKENIZED_ROWS = 2000  # of each file
# What every corpus looks at.
OF_ALL = (
    "output_dir",
    "corpus",
    "seed",
    "vocab_size",
    "tokenizer_name",
    "decontaminate",
    "overwrite_output_dir",
)
OF_RECORDS = ("mix", "document", "own_splits")
OWN_SPLITS = ("keep", "pool")
EXECUTORS = ("here", "local", "slurm", "ray")


@dataclass
class PrepareDataArguments:
    output_dir: str = field(metadata={"help": "folder of the data set"})
    corpus: str = field(default="idiom", metadata={"help": "a file of data_prepare/corpora/"})
    raw_dir: str | None = field(default=None, metadata={"help": "folder of the raw data (idiom is a package: none)"})
    seed: Seed = field(default=42, metadata={"help": "decides the splits, wrong answers and wording"})
    max_idioms: PositiveInt | None = field(default=None, metadata={"help": "idiom: use this many (default: all)"})
    vocab_size: NonNegativeInt = field(
        default=8000, metadata={"help": "pieces of the vocabulary, at most; 0: make none"}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "tokenizer that lengths are shown in: a folder or hub name (its own)"},
    )
    prompts_share: Fraction = field(
        default=0.1, metadata={"help": "share of all groups that is kept as prompts for PPO"}
    )
    dev_share: Fraction = field(default=0.02, metadata={"help": "share of all groups that is held out while training"})
    test_share: Fraction = field(default=0.02, metadata={"help": "share of all groups that is held out for the end"})
    near_duplicates: PositiveFloat = field(
        default=0.8, metadata={"help": "share of common 3-grams from which texts are one; above 1: only equal ones"}
    )
    on_bad_line: str = field(default="skip", metadata={"help": "skip: bad rows are counted and reported; or error"})
    decontaminate: list[str] = field(
        default_factory=list,
        metadata={"help": "folders of evaluation sets (csv, json, jsonl); rows that share a run of 13 with them go"},
    )
    mix: list[str] = field(
        default_factory=list, metadata={"help": "records: weights of files or folders, such as belle.json:0.5 sft/:2"}
    )
    document: str = field(default="line", metadata={"help": "records: what a text of a .txt file is, line or file"})
    own_splits: str = field(
        default="keep",
        metadata={"help": "records: files named train, dev and test keep their rows apart; pool: splits are drawn"},
    )
    compress: bool = field(default=False, metadata={"help": "write .jsonl.zst"})
    num_workers: NonNegativeInt = field(default=0, metadata={"help": "processes; 0: one a core"})
    executor: str = field(
        default="here", metadata={"help": "here, or datatrove's local, slurm or ray (pip install datatrove)"}
    )
    executor_settings: str = field(default="{}", metadata={"help": "JSON of keywords for datatrove's executor"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace another data set in output_dir"})

    def __post_init__(self) -> None:
        if self.on_bad_line not in ON_BAD_LINE:
            raise UserError(f"--on_bad_line must be one of {', '.join(ON_BAD_LINE)}, not {self.on_bad_line!r}")
        if self.own_splits not in OWN_SPLITS:
            raise UserError(f"--own_splits must be one of {', '.join(OWN_SPLITS)}, not {self.own_splits!r}")
        if self.executor not in EXECUTORS:
            raise UserError(f"--executor must be one of {', '.join(EXECUTORS)}, not {self.executor!r}")
        parsed_object("executor_settings", self.executor_settings)
        shares = (self.prompts_share, self.dev_share, self.test_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise UserError(
                "--prompts_share, --dev_share, --test_share: none may be negative, and some must be left to train"
            )


def main() -> None:
    args, cleaning = parse_arguments(PrepareDataArguments, CleaningSettings, description=__doc__)
    console = Console(highlight=False)
    corpus = corpus_module(args.corpus)
    refuse_what_has_no_effect(args, corpus)
    if cleaning.simplify is None:
        cleaning = replace(cleaning, simplify=getattr(corpus, "SIMPLIFY", False))
    cleaning = cleaning.resolved(curated=getattr(corpus, "CURATED", False))
    in_memory = hasattr(corpus, "build")
    made_from = made_from_package(args, corpus) if in_memory else made_from_files(args, corpus)
    made_from |= {
        "cleaning": asdict(cleaning),
        "decontaminate": [fingerprint(existing_folder(folder), memory()) for folder in args.decontaminate],
    }
    if Path(args.output_dir).is_file():
        raise UserError(f"--output_dir {args.output_dir}: is a file, expected a folder")
    with only_writer(args.output_dir, own=own_files):
        report = reusable_report(args.output_dir, made_from, args.overwrite_output_dir)
        if report is not None:
            console.print(f"{args.output_dir} already holds this data set; nothing to do.", soft_wrap=True)
        elif in_memory:
            report = build_in_memory(args, cleaning, corpus, made_from, console)
        else:
            report = build_from_files(args, cleaning, corpus, made_from, console)
        if report is not None:
            remove_work(work_folder(args.output_dir))
    if report is not None:
        show_corpus(console, Path(args.output_dir), report)


def work_folder(output_dir: str) -> Path:
    """Of what lies between the stages, and stays when a run is killed."""
    output = Path(output_dir).absolute()
    return output.with_name(f".{output.name}.work")


def refuse_what_has_no_effect(args: PrepareDataArguments, corpus: ModuleType) -> None:
    """Raises UserError naming a flag that this corpus does not look at."""
    given = changed(args)
    if hasattr(corpus, "build"):
        wrong = [name for name in given if name not in (*OF_ALL, "max_idioms")]
    else:
        wrong = [name for name in given if name == "max_idioms"]
    wrong += [name for name in given if args.corpus != "records" and name in OF_RECORDS]
    if wrong:
        raise UserError(f"--{wrong[0]} has no effect on --corpus {args.corpus}; leave it out")


def changed(settings: Any) -> list[str]:
    """The fields that are not at their defaults."""
    defaults = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(settings)
    }
    return [name for name, default in defaults.items() if getattr(settings, name) != default]


def made_from_package(args: PrepareDataArguments, corpus: ModuleType) -> dict[str, Any]:
    """Everything that decides the contents."""
    return {
        "corpus": args.corpus,
        "version": corpus.VERSION,
        "source": corpus.source(),
        "seed": args.seed,
        "max_idioms": args.max_idioms,
        "vocab_size": args.vocab_size,
        "tokenizers": family_tokenizers(),
    }


def made_from_files(args: PrepareDataArguments, corpus: ModuleType) -> dict[str, Any]:
    if args.raw_dir is None:
        raise UserError(f"--raw_dir: --corpus {args.corpus} needs the folder of its raw data: {corpus.DOWNLOAD}")
    raw = Path(args.raw_dir)
    if not raw.exists():
        raise UserError(f"--raw_dir {raw}: does not exist. To get the raw data: {corpus.DOWNLOAD}")
    names = ("corpus", "seed", "vocab_size", "tokenizer_name", "prompts_share", "dev_share", "test_share")
    names += ("near_duplicates", "on_bad_line", "compress", *OF_RECORDS)
    return {
        **{name: getattr(args, name) for name in names},
        "version": [corpus.VERSION, VERSION],
        "source": fingerprint(raw, memory()),
        "tokenizers": family_tokenizers(),
    }


def build_in_memory(
    args: PrepareDataArguments, cleaning: CleaningSettings, corpus: ModuleType, made_from: dict, console: Console
) -> dict[str, Any]:
    def progress(items: Iterable, label: str) -> Iterable:
        return track(items, description=label.ljust(20), console=console)

    data_set = corpus.build(seed=args.seed, max_items=args.max_idioms, track=progress)
    with whole_folder(args.output_dir, own=own_files) as folder:
        clean_rows(data_set, cleaning, args.decontaminate)
        for name, rows in data_set.files.items():
            write_jsonl(folder / name, rows)
        write_vocabulary(data_set.vocabulary_texts, args.vocab_size, folder, console)
        found = summary(data_set)
        write_page(args, corpus, found, folder)
        report = describe(folder, made_from) | found
        write_json(folder / REPORT, report)
    return report


def write_page(args: PrepareDataArguments, corpus: ModuleType, found: dict[str, Any], folder: Path) -> None:
    if args.tokenizer_name or args.vocab_size:
        count_tokens(found, folder, load_tokenizer(args.tokenizer_name or str(folder / TOKENIZER)))
    source = args.raw_dir or corpus.source()
    write_corpus_report(found, folder / PAGE, title=f"{args.corpus}: {source}")


def memory() -> Path:
    """Where checksums of raw files are kept."""
    return cache_folder("raw")


def existing_folder(folder: str) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"--decontaminate {folder}: no such folder")
    return Path(folder)


def build_from_files(
    args: PrepareDataArguments, cleaning: CleaningSettings, corpus, made_from: dict[str, Any], console: Console
) -> dict[str, Any] | None:
    """The report; None where jobs were only submitted."""
    raw = Path(args.raw_dir).absolute()
    before = states(raw)
    options = {"document": args.document} if args.corpus == "records" else {}
    by_size = fields_by_size(raw, functools.partial(corpus.pieces, raw, **options))
    paths = sorted({piece.path for pieces in by_size["portions"] for piece in pieces})
    own = own_splits(paths) if args.corpus == "records" and args.own_splits == "keep" else {}
    plan = Plan(
        corpus=args.corpus,
        raw_dir=str(raw),
        source=made_from["source"],
        version=corpus.VERSION,
        work=str(work_folder(args.output_dir)),
        seed=args.seed,
        shares={"test": args.test_share, "dev": args.dev_share, "prompts": args.prompts_share}
        | share_of_own(own, before),
        **by_size,
        near_duplicates=args.near_duplicates,
        on_bad_line=args.on_bad_line,
        compress=args.compress,
        cleaning=asdict(cleaning),
        decontaminate=tuple(str(Path(folder).absolute()) for folder in args.decontaminate),
        evaluation_source=" ".join(made_from["decontaminate"]),
        mix=parse_mix(args.mix, paths) if args.mix else {},
        own_splits=own,
        options=options,
    )
    left_out = corpus.not_read(raw) if hasattr(corpus, "not_read") else {}
    for line in [*lines_on_files(left_out), *lines_on_splits(own)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not run_pipeline(args, plan, console):
        return None
    if args.executor == "here" and not has_training_rows(plan) and (num_rows := num_rows_held_out(plan)):
        console.print(f"{num_rows} rows are too few to hold some out: all are for training", soft_wrap=True)
        plan = replace(plan, shares=plan.shares | dict.fromkeys(plan.drawn_shares, 0.0))
        run_pipeline(args, plan, console)
    if differ := differing(before, states(raw)):
        raise UserError(f"--raw_dir {raw}: {differ[0]} changed while it was read; give the same command again")
    try:
        with whole_folder(args.output_dir, own=own_files) as folder:
            found = collect(plan, folder) | {"not_read": left_out}
            write_vocabulary(training_texts(folder), args.vocab_size, folder, console)
            write_page(args, corpus, found, folder)
            report = describe(folder, made_from) | found
            write_json(folder / REPORT, report)
    except UserError:  # nothing is left of the data, or a setting does not fit them
        if not has_training_rows(plan):
            remove_work(Path(plan.work))
        raise
    empty = [split for split in ("dev", "test") if not any(f"_{split}" in name for name in report["rows"])]
    if empty:
        why = "" if own else " (few rows: see --dev_share and --test_share)"
        note = '; --eval_filename "" trains without held-out rows' if "dev" in empty else ""
        console.print(f"no rows for {' and '.join(empty)}{why}{note}", markup=False, soft_wrap=True)
    return report


def run_pipeline(args: PrepareDataArguments, plan: Plan, console: Console) -> bool:
    """Whether it is done; on other machines the jobs may only have been submitted."""
    if begin(plan):
        console.print(f"goes on with what an earlier run left in {plan.work}", soft_wrap=True)
    if plan.decontaminate and not (ngrams := Path(evaluation_ngrams(plan))).exists():
        with console.status("reading the evaluation sets"):
            write_evaluation_ngrams(plan.decontaminate, ngrams)
    if args.executor == "here":
        engine.run_here(plan, args.num_workers or usable_cores(), stage_bar)
        return True
    engine.run_with_datatrove(plan, args.executor, parsed_object("executor_settings", args.executor_settings))
    if not engine.is_done(plan):
        console.print("The jobs are submitted. Give the same command again when they have ended.")
        return False
    return True


def count_tokens(found: dict[str, Any], folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds to each file how long, in tokens, what is learned from its first rows is; these are in random order."""
    for pattern, counts in found["files"].items():
        rows = islice(iterate_rows(min(folder.glob(pattern))), TOKENIZED_ROWS)
        texts = [text for _, row in rows if (text := reply_of(row))]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        lengths = Counter(length_class(len(one)) for one in ids)
        counts["token_lengths"] = dict(sorted(lengths.items()))


def stage_bar(total: int, title: str) -> Progress:
    return Progress(total, title, unit="tasks")


def write_vocabulary(texts: list[str], vocab_size: int, folder: Path, console: Console) -> None:
    """A tokenizer for models that begin from random weights, and one for each named size that asks for its own kind."""
    if not vocab_size:
        return
    with console.status("training the vocabulary"):
        vocabulary = train_sentencepiece(texts, vocab_size)
    save_tokenizer(vocabulary, folder / TOKENIZER)
    for size, config in family_tokenizers().items():
        save_family_tokenizer(vocabulary, config, folder / f"{TOKENIZER}-{size}")


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


if __name__ == "__main__":
    run_stage(main)
