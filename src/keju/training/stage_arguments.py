"""The settings that stages share. Names are those of transformers and of the pipelines that users come from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from keju.encoding.chat_settings import ChatSettings
from keju.errors import UserError
from keju.training.cache_folder import cache_folder
from keju.training.freezing import Freezing
from keju.training.optimization import check_schedule, optimizer_class
from keju.training.ranges import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from keju.training.trackers import check_trackers

BASE_MODEL_HELP = "Folder of the base, where --model_name_or_path holds adapters and they name another one."
ADAPTERS_HELP = (
    "What becomes of adapters in --model_name_or_path: they are trained on (continue, the default); merged into their "
    "base, and all weights or new adapters are trained (merge); or kept, and new ones are trained beside them (stack)."
)
TENSOR_PARALLEL_HELP = "Only 1: matrices are not cut up among GPUs (ZeRO-3 does that between passes)."


def check_tensor_parallel_size(size: int) -> None:
    """Raises UserError above 1."""
    if size != 1:
        raise UserError(
            f"--tensor_parallel_size {size}: DeepSpeed's AutoTP would cut matrices that losses and attention here read "
            "whole; for models that do not fit one GPU give --deepspeed a ZeRO-3 configuration"
        )


@dataclass(kw_only=True)
class FreezingArguments:
    """Which weights rest."""

    freeze: list[str] | None = field(
        default=None, metadata={"help": "Globs of the names of weights that are not trained: '*embed*' '*norm*'."}
    )
    unfreeze: list[str] | None = field(
        default=None, metadata={"help": "Globs of those among them that are trained all the same."}
    )
    freeze_first_layers: NonNegativeInt = field(default=0, metadata={"help": "So many of the first layers rest."})
    freeze_last_layers: NonNegativeInt = field(default=0, metadata={"help": "So many of the last layers rest."})

    def freezing(self) -> Freezing:
        return Freezing(
            tuple(self.freeze or ()), tuple(self.unfreeze or ()), self.freeze_first_layers, self.freeze_last_layers
        )

    def check_freezing(self, *, has_adapters: bool) -> None:
        """Raises UserError for settings that have no effect."""
        if self.unfreeze and not self.freezing():
            raise UserError("--unfreeze: nothing is frozen; --freeze '*' freezes all")
        if has_adapters and self.freezing():
            raise UserError("--freeze: adapters are trained, and the weights below them rest in any case")


@dataclass
class ModelArguments(FreezingArguments):
    """Which model is trained, and how it is loaded."""

    _argument_group_name = "model"

    model_name_or_path: str = field(
        metadata={"help": "Checkpoint folder, hub name, or a built-in size that starts from random weights."}
    )
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer folder or hub name, where it is not the model's own."}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "Chat template by name (llama2, vicuna, ziya ...), or a Jinja file."}
    )
    config_overrides: str = field(
        default="", metadata={"help": "Changes to the model's configuration, as hidden_size=256,num_hidden_layers=4."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the weights in memory (see --bf16 for mixed precision)."}
    )
    adapters: Literal["continue", "merge", "stack"] | None = field(default=None, metadata={"help": ADAPTERS_HELP})
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all weights."})
    lora_r: PositiveInt = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: PositiveInt = field(default=16, metadata={"help": "Scale of the adapters, divided by their rank."})
    lora_dropout: Fraction = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the layers that get adapters; all linear layers but the head (all-linear) by default."
        },
    )
    lora_modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Layers trained whole and saved with the adapters: the embeddings, where tokens were added."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Divide --lora_alpha by the root of the rank (rsLoRA)."})
    use_dora: bool = field(default=False, metadata={"help": "Train the lengths of the weights' rows apart (DoRA)."})
    loraplus_lr_ratio: PositiveFloat = field(
        default=1.0, metadata={"help": "Learning rate of B over that of A (LoRA+, published: 16); 1: the same."}
    )
    init_lora_weights: Literal["default", "gaussian", "pissa", "pissa_niter_16", "loftq"] = field(
        default="default",
        metadata={
            "help": "Where adapters start: B = 0, A uniform (default) or normal (gaussian); the largest singular "
            "values of the weights (pissa; pissa_niter_16 finds them faster); or what --load_in_4bit loses (loftq)."
        },
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Keep the frozen base in 4 bits, by bitsandbytes (QLoRA); with --use_peft."}
    )

    def __post_init__(self):
        self.parsed_overrides()
        self.check_freezing(has_adapters=self.use_peft)
        if self.load_in_4bit and not self.use_peft:
            raise UserError("--load_in_4bit: weights in 4 bits cannot be trained; it needs --use_peft")

    @property
    def adapter_lr_ratio(self) -> float:
        """`loraplus_lr_ratio` where there are adapters."""
        return self.loraplus_lr_ratio if self.use_peft else 1.0

    def parsed_overrides(self) -> dict[str, object]:
        return parse_overrides(self.config_overrides)


@dataclass
class StartArguments(ModelArguments):
    """Of the stages that may begin with random weights."""

    from_scratch: bool = field(
        default=False, metadata={"help": "Take only the configuration of the model; start from random weights."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.from_scratch and self.adapters is not None:
            raise UserError(f"--adapters {self.adapters}: --from_scratch takes neither weights nor adapters")


def parse_overrides(text: str) -> dict[str, object]:
    """--config_overrides as a dict; numbers, true, false and null as in JSON, anything else as text.

    Raises UserError for what is no name=value.
    """
    overrides = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--config_overrides: expected name=value, got {item!r}")
        try:
            overrides[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            overrides[key.strip()] = value.strip()
    return overrides


@dataclass(kw_only=True)
class TokenCacheArguments:
    """How records become tokens, and where these are kept."""

    token_cache: Literal["auto", "on", "off"] = field(
        default="auto",
        metadata={
            "help": "Keep the tokens of record files on disk and read them from there: of files of 32 MB of text or "
            "more, and whatever `keju.tokenize_data` has made (auto); of all; of none."
        },
    )
    token_cache_dir: str = field(
        default=str(cache_folder("tokens")), metadata={"help": "Folder in which tokens are kept."}
    )
    num_workers: PositiveInt | None = field(
        default=None, metadata={"help": "Processes that encode records for --token_cache; as many as cores by default."}
    )


@dataclass(kw_only=True)
class ThinkingArguments:
    """How conversations are rendered."""

    enable_thinking: Literal["default", "true", "false"] = field(
        default="default",
        metadata={
            "help": "What the chat template is given as enable_thinking, where it reads that; or its own default."
        },
    )

    def chat_settings(self) -> ChatSettings:
        return ChatSettings(enable_thinking=parsed_thinking(self.enable_thinking))


@dataclass(kw_only=True)
class ChatTrainingArguments(ThinkingArguments):
    """Which turns of conversations are trained."""

    train_turns: Literal["all", "last"] = field(
        default="all", metadata={"help": "Train every assistant turn of a conversation, or the last one alone."}
    )
    train_thoughts: Literal["all", "last", "none"] = field(
        default="all", metadata={"help": "Train what is thought before an answer: in all turns, the last one, or none."}
    )

    def chat_settings(self) -> ChatSettings:
        return ChatSettings(parsed_thinking(self.enable_thinking), self.train_turns, self.train_thoughts)

    def check_stage(self, stage: str) -> None:
        """Raises UserError for what has no effect on the tokens of this stage."""
        given = {"train_turns": "all", "train_thoughts": "all"} if stage != "sft" else {}
        given |= {"enable_thinking": "default"} if stage == "pretrain" else {}
        for name, default in given.items():
            if getattr(self, name) != default:
                raise UserError(f"--{name}: has no effect with --stage {stage}")


def parsed_thinking(text: str) -> bool | None:
    """--enable_thinking as a value; None: the template's own default."""
    return {"true": True, "false": False}.get(text)


@dataclass
class DataArguments(TokenCacheArguments):
    """Which records are read, and how much of them."""

    _argument_group_name = "data"

    data_dir: str = field(metadata={"help": "Folder of the record files."})
    train_filename: str = field(metadata={"help": "Records to train on, in --data_dir: a file or a set of shards."})
    eval_filename: str | None = field(default=None, metadata={"help": "Held-out records, in --data_dir."})
    max_length: PositiveInt = field(default=512, metadata={"help": "Longest record in tokens (prompt and one answer)."})
    token_budget: PositiveInt = field(default=4096, metadata={"help": "Tokens of one packed row: the unit of memory."})
    on_bad_line: Literal["error", "skip"] = field(
        default="error", metadata={"help": "A line that cannot be read stops the run, or is skipped and counted."}
    )
    on_long: Literal["skip", "truncate", "error"] = field(
        default="skip",
        metadata={"help": "A record longer than --max_length is left out and counted, cut, or stops the run."},
    )
    max_train_samples: PositiveInt | None = field(
        default=None, metadata={"help": "Read at most so many training records."}
    )
    max_eval_samples: PositiveInt | None = field(
        default=None, metadata={"help": "Read at most so many held-out records."}
    )

    def chat_settings(self) -> ChatSettings:
        """How conversations are rendered; stages that read some have flags for it."""
        return ChatSettings()

    def path(self, filename: str) -> Path:
        """The record file `filename` in `data_dir` (an absolute path stays as it is)."""
        return Path(self.data_dir).expanduser() / Path(filename).expanduser()


@dataclass
class StageTrainingArguments(TrainingArguments):
    """transformers.TrainingArguments with the defaults of our stages."""

    _argument_group_name = "training"

    output_dir: str = field(metadata={"help": "Folder of this run: checkpoint, log, metrics and plots."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that --output_dir holds and start again."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint folder, or `auto`: the newest one in --output_dir, if any."}
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint although settings or data are others than those it was made with."},
    )
    num_train_epochs: PositiveFloat = field(default=1.0, metadata={"help": "Passes over the training records."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Course of the learning rate."})
    warmup_steps: NonNegativeFloat = field(
        default=0.03, metadata={"help": "Warm-up steps; below 1: share of all steps."}
    )
    logging_steps: PositiveFloat = field(default=10, metadata={"help": "Steps between two rows of metrics.jsonl."})
    logging_first_step: bool = field(default=True, metadata={"help": "Also log the very first step."})
    # transformers hides a NaN in the logged loss by default; we stop at it.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and Inf in the logged loss."})
    save_total_limit: PositiveInt | None = field(
        default=2, metadata={"help": "Checkpoints kept; older ones are deleted."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Trackers beside metrics.jsonl: none, tensorboard, wandb, swanlab ..."}
    )
    disable_tqdm: bool | None = field(default=True, metadata={"help": "transformers' own bar; ours replaces it."})
    early_stopping_patience: PositiveInt | None = field(
        default=None,
        metadata={"help": "End after so many evaluations in a row that were no better (by --metric_for_best_model)."},
    )
    tensor_parallel_size: PositiveInt = field(default=1, metadata={"help": TENSOR_PARALLEL_HELP})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: batches are token trees."})

    def __post_init__(self):
        check_tensor_parallel_size(self.tensor_parallel_size)
        if isinstance(self.deepspeed, str) and not self.deepspeed.startswith("{"):
            path = Path(self.deepspeed).expanduser()
            if not path.is_file():
                raise UserError(f"--deepspeed: {path} does not exist")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UserError("--overwrite_output_dir deletes what --resume_from_checkpoint needs; give one of the two")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # pinned memory exists for copies to a GPU
        check_trackers(self.report_to)
        for flag in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
            setattr(self, flag, parsed_object(flag, getattr(self, flag)))
        if self.early_stopping_patience is not None:
            self.metric_for_best_model = self.metric_for_best_model or "loss"
            # How long it has waited is a part of what a run goes on from.
            self.restore_callback_states_from_checkpoint = True
        is_measured = IntervalStrategy(self.eval_strategy) != IntervalStrategy.NO
        check_schedule(self.lr_scheduler_type, self.lr_scheduler_kwargs, is_measured=is_measured)
        super().__post_init__()
        optimizer_class(self)


def parsed_object(flag: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """The settings that a flag takes as a JSON object. Raises UserError for anything else."""
    if value is None or isinstance(value, dict):
        return value
    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise UserError(f"--{flag}: not JSON: {error.msg} at character {error.pos + 1}") from error
    if not isinstance(found, dict):
        raise UserError(f'--{flag}: expected a JSON object, as {{"name": 1}}')
    return found
