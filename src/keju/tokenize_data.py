"""Tokenise record files ahead of a stage, which then reads them from disk: once, with all cores, without a GPU.

The YAML file may be that of the stage itself: other settings (--max_length, --on_long ...) would make other tokens.

python -m keju.tokenize_data examples/configs/pretrain.yaml --stage pretrain --model_name_or_path llama-tiny \
    --tokenizer_name runs/data/idiom/tokenizer --data_dir runs/data/idiom
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from keju.encoding.encoder import Encoder
from keju.encoding.text_encoder import UNLIMITED
from keju.encoding.token_store import DamagedStore, open_store
from keju.records.folds import Fold
from keju.records.shards import record_files
from keju.stages.spec import stages, stages_with
from keju.training.arguments import ChatTrainingArguments, DataArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.own_tokenizer import tokenizer_of
from keju.training.progress import compact
from keju.training.tree_reading import TreeRequest

DEFAULT = "<what --stage reads>"


@dataclass
class TokenizerArguments:
    """Give what the stage will be given: other settings make other tokens."""

    _argument_group_name = "tokenizer"

    model_name_or_path: str = field(metadata={"help": "Checkpoint folder or hub name whose tokenizer is taken."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer folder or hub name, where it is not the model's own."}
    )
    chat_template: str | None = field(default=None, metadata={"help": "Chat template by name, or a Jinja file."})


@dataclass
class TokenizeArguments(ChatTrainingArguments, DataArguments):
    train_filename: str = field(default=DEFAULT, metadata={"help": "Records; by default what --stage reads."})
    eval_filename: str | None = field(
        default=DEFAULT, metadata={"help": 'Held-out records; by default as --stage; "": none.'}
    )
    stage: str = field(
        default="sft",
        metadata={"help": "What the tokens are for; kto: dpo with --loss_type kto.", "choices": stages_with("form")},
    )
    fold: str = field(default="1/1", metadata={"help": "As --fold of the reward stage."})

    def __post_init__(self) -> None:
        Fold(self.fold)
        self.check_stage(self.stage)
        stage = stages()[self.stage]
        self.train_filename = stage.train_file if self.train_filename == DEFAULT else self.train_filename
        self.eval_filename = stage.eval_file if self.eval_filename == DEFAULT else self.eval_filename


def main() -> None:
    tokenizer_args, data = parse_arguments(
        TokenizerArguments, TokenizeArguments, description=__doc__, takes_any_config=True
    )
    tokenizer = tokenizer_of(tokenizer_args, tokenizer_args.chat_template)
    # Prompts are kept whole: how long they may be is a matter of the stage that reads them.
    limit = UNLIMITED if stages()[data.stage].form == "prompt" else data.max_length
    encoder = Encoder(tokenizer, limit, on_long=data.on_long, chats=data.chat_settings())
    # The reward stage takes a part of its training records; the others, and held-out records, are whole.
    fold = Fold(data.fold) if data.stage == "reward" else None
    tokenise(data, encoder, data.train_filename, data.max_train_samples, fold)
    if data.eval_filename:
        tokenise(data, encoder, data.eval_filename, data.max_eval_samples, None)


def tokenise(
    data: TokenizeArguments, encoder: Encoder, filename: str, max_samples: int | None, fold: Fold | None
) -> None:
    """Makes the store of one file, or checks the one that is there, and says what it holds."""
    path, cache, form = data.path(filename), Path(data.token_cache_dir).expanduser(), stages()[data.stage].form
    request = TreeRequest(path, record_files(path), encoder, form, data.on_bad_line, max_samples, fold)
    folder = request.folder(cache)
    is_there = False
    if folder.exists():
        try:
            open_store(folder, request.files, thoroughly=True)
            is_there = True
        except DamagedStore as error:
            print(f"{error}; made anew")
            request.discard(cache)
    start = time.monotonic()
    records = request.stored(cache, data.num_workers, build=True)
    totals, seconds = records.trees.totals, time.monotonic() - start
    request.show_cap(records, "--max_train_samples" if filename == data.train_filename else "--max_eval_samples", cache)
    done = "is there already, checked" if is_there else f"{compact(totals.num_tokens / max(seconds, 1e-9))} tokens/s"
    print(
        f"{path.name} -> {folder}: {totals.num_tokens} tokens in {totals.num_trees} trees of {records.num_records} "
        f"records, {records.num_skipped + records.num_bad} left out; {done}"
    )


if __name__ == "__main__":
    run_stage(main)
