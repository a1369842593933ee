"""Looks at a model and data without training: one example as it will be learned, and what is surely wrong.

python -m keju.doctor --model_name_or_path runs/pretrain --data_dir runs/data/idiom --stage sft
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from keju.encoding.dataset import EncodedRecords
from keju.encoding.encoder import Encoder
from keju.encoding.refusals import Unencodable
from keju.encoding.template_check import check_against_template, trained_text
from keju.encoding.text_encoder import UNLIMITED
from keju.encoding.token_store import totals_of
from keju.models.architecture import check_row
from keju.models.loading import load_causal_lm
from keju.records.reading import iterate_records
from keju.stages.spec import stages, stages_with
from keju.tokenizers.family import answer_end_id
from keju.training.arguments import ChatTrainingArguments, DataArguments, StartArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.own_tokenizer import tokenizer_of
from keju.training.ranges import PositiveInt
from keju.training.stage import inspect, num_shared
from keju.training.tree_guard import verify_trees
from keju.training.tree_reading import read_trees

COMPARED = 32  # records whose tokens are compared with the chat template's own rendering
TRAINED_SHOWN = 400  # characters


@dataclass
class DoctorArguments(ChatTrainingArguments, DataArguments):
    train_filename: str = field(default="", metadata={"help": "Record file; by default the one that --stage reads."})
    max_train_samples: PositiveInt | None = field(default=1000, metadata={"help": "Look at so many records."})


@dataclass
class StageArguments:
    _argument_group_name = "stage"

    stage: str = field(default="sft", metadata={"help": "What the data is meant for.", "choices": stages_with("form")})


def main() -> None:
    model_args, data, stage = parse_arguments(StartArguments, DoctorArguments, StageArguments, description=__doc__)
    form = stages()[stage.stage].form
    data.check_stage(stage.stage)
    tokenizer = tokenizer_of(model_args, model_args.chat_template)
    encoder = Encoder(tokenizer, data.max_length, on_long=data.on_long, chats=data.chat_settings())
    filename = data.train_filename or stages()[stage.stage].train_file
    encoded = read_trees(data, filename, encoder, form, option="train_filename", max_samples=data.max_train_samples)
    model = load_causal_lm(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        tokenizer=tokenizer,
        from_scratch=model_args.from_scratch,
        config_overrides=model_args.parsed_overrides(),
        base=model_args.base_model,
    )
    inspect(encoded, tokenizer, model, form=form)
    check_row(model.config, totals_of(encoded.trees).deepest)
    verify_trees(model, gradients=True)
    compared = compare_with_template(data, filename, encoder, form)
    table = figures(encoded, form, tokenizer, model)
    if compared:
        table.add_row("chat template", f"{compared} of {compared} records equal its own rendering, token by token")
    if form == "sft":
        table.add_row("trained", Text(trained_text(encoded[0], encoder)[:TRAINED_SHOWN]))
    Console().print(table)
    print("Nothing is wrong that can be seen from here.")


def compare_with_template(data: DoctorArguments, filename: str, encoder: Encoder, form: str) -> int:
    """How many of the first records have been compared. Raises UserError for one that differs."""
    whole = Encoder(encoder.tokenizer, UNLIMITED, chats=encoder.chats)
    compared = 0
    for record in islice(iterate_records(data.path(filename), on_bad_line=data.on_bad_line), COMPARED):
        try:
            compared += check_against_template(record, whole, form)
        except Unencodable:
            if data.on_bad_line == "error":
                raise
    return compared


def figures(encoded: EncodedRecords, form: str, tokenizer, model) -> Table:
    """What the records amount to."""
    trees = encoded.trees
    totals = totals_of(trees)
    rows = {
        "model": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters",
        "tokenizer": f"{type(tokenizer).__name__}, {len(tokenizer)} tokens; bos {tokenizer.bos_token!r}, "
        f"eos {tokenizer.eos_token!r}, pad {tokenizer.pad_token!r}, answers end in "
        f"{tokenizer.convert_ids_to_tokens(answer_end_id(tokenizer))!r}, "
        f"{'chat template' if tokenizer.chat_template else 'no chat template'}",
        "records": f"{len(trees)} used, {encoded.num_skipped} left out",
        "longest": f"{totals.deepest} tokens from the root to the end of an answer",
        "tokens": f"{totals.num_tokens}, of which {totals.num_predictions} are trained",
    }
    if form == "ranked":
        rows["pairs"] = f"{totals.num_pairs}; trees hold {num_shared(trees):.2f} times fewer tokens than rows would"
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


if __name__ == "__main__":
    run_stage(main)
