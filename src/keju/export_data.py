"""Export records: files in any format that Keju reads -> one file in a format that other toolkits read.

    python -m keju.export_data --input_files runs/data/idiom/ranked_train.jsonl --layout preference --output_file my.csv

The end of --output_file says which kind of file is written. What a layout cannot hold stops the export with the place
and the reason, or is left out, counted and shown with --on_bad_line skip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

from keju.data_prepare.corpora import records
from keju.data_prepare.corpus import BadRow, Item
from keju.data_prepare.exporting import LAYOUTS, PAIRS, Choices, columns, export
from keju.data_prepare.formats.row_files import row_file
from keju.errors import UserError, renamed_options
from keju.records.locks import only_writer
from keju.records.reading import ON_BAD_LINE
from keju.training.arguments import parse_arguments
from keju.training.launch import run_stage

PIECE_BYTES = 1 << 24


@dataclass
class ExportDataArguments:
    input_files: list[str] = field(metadata={"help": "files or folders of examples, in the order of the output"})
    output_file: str = field(metadata={"help": "ends in .jsonl, .jsonl.gz, .jsonl.zst, .json, .csv, .parquet or .txt"})
    layout: str = field(default="records", metadata={"help": f"the fields of a row: {', '.join(LAYOUTS)}"})
    pairs: str = field(default="all", metadata={"help": f"in preference: {' or '.join(PAIRS)} answers of a prompt"})
    conversational: bool = field(
        default=False,
        metadata={"help": "preference, kto and prompts as turns, which system and earlier turns need"},
    )
    on_bad_line: str = field(default="error", metadata={"help": "error, or skip: leave out, count and show"})
    overwrite: bool = field(default=False, metadata={"help": "replace output_file where it is there"})

    def __post_init__(self) -> None:
        for name, choices in (("layout", LAYOUTS), ("pairs", PAIRS), ("on_bad_line", ON_BAD_LINE)):
            if getattr(self, name) not in choices:
                raise UserError(f"--{name} {getattr(self, name)}: expected one of {', '.join(choices)}")


@renamed_options(raw_dir="input_files", output_dir="output_file")
def main() -> None:
    (args,) = parse_arguments(ExportDataArguments, description=__doc__)
    output, choices = Path(args.output_file), Choices(args.pairs, args.conversational)
    console = Console(highlight=False)
    with only_writer(output):
        export_all(args, output, choices, console)


def export_all(args: ExportDataArguments, output: Path, choices: Choices, console: Console) -> None:
    if output.exists() and not args.overwrite:
        raise UserError(f"--output_file {output}: is there already; name another or replace it with --overwrite")
    counts, left_out, refused, examples = Counter[str](), Counter[str](), Counter[str](), dict[str, str]()
    with row_file(output, columns(args.layout, choices)) as write:
        for where, found in items(args.input_files, console):
            counts["read"] += 1
            try:
                if isinstance(found, BadRow):
                    raise UserError(found.reason)
                exported = export(found.row, args.layout, choices)
                for row in exported.rows:
                    write(row)
            except UserError as error:
                if args.on_bad_line == "error":
                    raise UserError(f"{where}: {error}") from error
                refused[str(error)] += 1
                examples.setdefault(str(error), where)
                continue
            counts["rows"] += len(exported.rows)
            if not exported.rows:
                refused[exported.left_out] += 1
                examples.setdefault(exported.left_out, where)
            elif exported.left_out:
                left_out[exported.left_out] += 1
                examples.setdefault(exported.left_out, where)
        if not counts["rows"]:
            first = next(iter(refused.items()), ("no record in the input", 0))[0]
            raise UserError(f"--output_file {output}: nothing to write: {first}")
    console.print(f"{output}: {counts['rows']} rows of {counts['read']} records as {args.layout}", soft_wrap=True)
    for reason, number in refused.most_common():
        console.print(f"  left out {number}, such as {examples[reason]}: {reason}", markup=False, soft_wrap=True)
    for what, number in left_out.most_common():
        console.print(f"  without {what}: {number}, such as {examples[what]}", markup=False, soft_wrap=True)


def items(inputs: list[str], console: Console) -> Iterator[tuple[str, Item | BadRow]]:
    """(file:line, item) of all inputs, one after the other."""
    pieces = []
    for name in inputs:
        pieces += [(Path(name), piece) for piece in records.pieces(name, PIECE_BYTES)]
    for path, piece in track(pieces, description="exporting", console=console, transient=True):
        root = path.parent if path.is_file() else path
        for found in records.read(path, piece):
            yield str(root / found.where), found


if __name__ == "__main__":
    run_stage(main)
