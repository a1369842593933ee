"""What the training stages share: records in, a trained checkpoint folder with its log and pictures out.

The method of a stage (which records, which loss, which plots) stays in its script.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from keju.encoding.dataset import EncodedRecords
from keju.encoding.encoder import Encoder
from keju.encoding.inspection import check_trees, example_table
from keju.encoding.store_key import tokenizer_digest
from keju.encoding.token_store import totals_of
from keju.errors import UserError
from keju.models.backbone import backbone_of, num_embeddings, tree_layout
from keju.models.configurations import base_option, check_model, check_rows
from keju.models.gathering import in_pieces
from keju.models.loading import DTYPES, load_causal_lm, load_scalar_model
from keju.models.quantization import is_quantized, nf4
from keju.records.folds import Fold
from keju.stages.spec import Stage
from keju.training.adapters import add_lora, has_adapters, train_on
from keju.training.arguments import DataArguments, ModelArguments, StageTrainingArguments, StartArguments
from keju.training.cache_folder import cache_folder
from keju.training.dropout import Dropout
from keju.training.early_stopping import EarlyStopping
from keju.training.engines import autocast_dtype, readable
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.objectives.objective import Objective
from keju.training.op_builds import survive_killed_builds
from keju.training.own_tokenizer import tokenizer_of
from keju.training.plots import plot_loss
from keju.training.processes import start_deepspeed
from keju.training.progress import RunCallback
from keju.training.resuming import digest_of, model_digest
from keju.training.run_folder import RunFolder
from keju.training.stacking import check_stack, is_stacked, load_stacked
from keju.training.starts import check_adapters, merged_start, name_start, remove_start
from keju.training.tree_guard import verify_trees
from keju.training.tree_reading import read_splits
from keju.training.tree_trainer import TreeTrainer
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

# What new adapters are made with.
NEW_ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save")
NEW_ADAPTERS += ("use_rslora", "use_dora", "init_lora_weights")
DIGESTS = cache_folder("digests")  # hashes of files that are large, by their size and time


@dataclass
class Outcome:
    """trainer: after training, its model still in memory. summary: what summary.json will say."""

    trainer: TreeTrainer
    summary: dict = field(default_factory=dict)


def open_run(stage: str, model_args: Any, data: Any, training: Any) -> RunFolder:
    """Opens --output_dir for this run; the log begins here. The arguments are the dataclasses of any training stage."""
    return RunFolder(
        training.output_dir,
        stage,
        arguments=[model_args, data, training],
        overwrite=training.overwrite_output_dir,
        resume=training.resume_from_checkpoint,
        accept_changes=training.resume_with_changes,
    )


def prepare(folder: RunFolder, model_args: ModelArguments, data: DataArguments, training: StageTrainingArguments):
    """Seeds every generator and loads the tokenizer -> (tokenizer, encoder)."""
    check_adapters(model_args.adapters, model_args.model_name_or_path)
    if model_args.adapters == "stack":
        check_stack(model_args.model_name_or_path, vars(model_args))
    check_model(model_args.model_name_or_path, overrides=model_args.parsed_overrides(), base=model_args.base_model)
    set_seed(training.seed)
    if training.deepspeed:
        survive_killed_builds()
        _ = training.device  # its first use starts the process group
        start_deepspeed()
    tokenizer = tokenizer_of(model_args, model_args.chat_template)
    folder.identify(tokenizer_name=tokenizer_digest(tokenizer), **start_of(training.deepspeed, model_args))
    return tokenizer, Encoder(tokenizer, data.max_length, on_long=data.on_long, chats=data.chat_settings())


def start_of(deepspeed: str | None, models: Any, *flags: str) -> dict[str, str]:
    """{flag: hash} of the models of a run (--model_name_or_path and those in `flags` that are given) and of its
    DeepSpeed configuration, for RunFolder.identify."""
    given = {flag: getattr(models, flag) for flag in ("model_name_or_path", *flags)}
    bases = {flag: vars(models).get(base_option(flag)) for flag in given}
    digests = {flag: model_digest(name, DIGESTS, bases[flag]) for flag, name in given.items() if name}
    if deepspeed:
        path = Path(deepspeed).expanduser()
        digests["deepspeed"] = digest_of([path.read_text(encoding="utf-8") if path.is_file() else deepspeed])
    return digests


def read_records(
    folder: RunFolder,
    args: ModelArguments,
    data: DataArguments,
    encoder: Encoder,
    form: str,
    *,
    fold: Fold | None = None,
) -> tuple[EncodedRecords, EncodedRecords | None]:
    """read_splits, before the model loads; the run is known by its records from then on.

    Raises UserError for rows that the layers of the model do not see whole.
    """
    records, held_out = read_splits(data, encoder, form, fold=fold)
    folder.identify(train_filename=records.digest)
    longest = max(totals_of(split.trees).deepest for split in (records, held_out) if split)
    check_rows(args.model_name_or_path, longest, overrides=args.parsed_overrides(), base=args.base_model)
    return records, held_out


def base_quantization(args: ModelArguments, training: StageTrainingArguments) -> BitsAndBytesConfig | None:
    """How --load_in_4bit keeps the base; None without it."""
    if not args.load_in_4bit:
        return None
    if is_deepspeed_zero3_enabled():
        raise UserError("--load_in_4bit: ZeRO-3 cannot take 4-bit weights apart; take --deepspeed with ZeRO 0 to 2")
    return nf4(DTYPES["bfloat16" if training.bf16 else "float16" if training.fp16 else args.dtype])


def load_start(
    load: Callable[..., PreTrainedModel],
    folder: RunFolder,
    args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    training: StageTrainingArguments,
    **settings,
) -> tuple[PreTrainedModel, ModelArguments]:
    """The model that --model_name_or_path names, or what --adapters makes of it, and the arguments that describe that.

    load: load_causal_lm or load_scalar_model; it gets `settings`, too.
    """
    is_merged = args.adapters == "merge"
    if is_merged:
        _ = training.device  # its first use starts the process group
        name, base = args.model_name_or_path, args.base_model
        start = merged_start(folder, name, base=base, dtype=args.dtype, tokenizer=tokenizer)
        args = replace(args, model_name_or_path=str(start), base_model=None, adapters=None)
    loader = partial(load_stacked, load) if args.adapters == "stack" else load
    model = loader(
        args.model_name_or_path,
        dtype=args.dtype,
        tokenizer=tokenizer,
        config_overrides=args.parsed_overrides(),
        quantization=base_quantization(args, training),
        base=args.base_model,
        **settings,
    )
    if is_merged and args.use_peft:
        name_start(folder, model)
    else:
        remove_start(folder)
    return model, args


def add_adapters(model: PreTrainedModel, args: ModelArguments, *, task_type: str) -> PreTrainedModel:
    """LoRA adapters as --use_peft asks for; those that the model has brought along are trained on, unless --adapters
    says otherwise."""
    if has_adapters(model) and not is_stacked(model):
        args.check_freezing(has_adapters=True)
        given = {flag: getattr(args, flag) for flag in NEW_ADAPTERS}
        defaults = {item.name: item.default for item in fields(ModelArguments)}
        train_on(model, args.model_name_or_path, {flag: given[flag] for flag in given if given[flag] != defaults[flag]})
        return model
    if not args.use_peft:
        args.freezing().apply(model)
        return model
    original = None
    if args.init_lora_weights == "loftq":
        load = load_scalar_model if task_type == "SEQ_CLS" else load_causal_lm
        original = load(
            args.model_name_or_path,
            dtype=args.dtype,
            config_overrides=args.parsed_overrides(),
            base=args.base_model,
        )
    return add_lora(
        model,
        task_type=task_type,
        r=args.lora_r,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout,
        target_modules=args.lora_target_modules,
        modules_to_save=args.lora_modules_to_save,
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
        init_lora_weights=args.init_lora_weights,
        original=original,
    )


def inspect(
    encoded: EncodedRecords, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, form: str, show: bool = True
) -> None:
    """Prints one example as the model will learn it, and refuses what is surely wrong."""
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None) or []
    check_trees(
        encoded.trees,
        encoded.where,
        tokenizer,
        form=form,
        vocab_size=num_embeddings(model),
        end_ids=ends if isinstance(ends, list) else [ends],
    )
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = totals_of(encoded.trees).deepest
    if limit and longest > limit:
        raise UserError(f"--max_length: a record of {longest} tokens, but the model has {limit} positions")
    if show:
        position_ids, _ = tree_layout(backbone_of(model), PackedBatch.from_trees([encoded[0]]))
        Console().print(example_table(encoded[0], tokenizer, position_ids=position_ids))


def train(
    model: PreTrainedModel,
    objective: Objective,
    tokenizer: PreTrainedTokenizerBase,
    train_records: EncodedRecords,
    eval_records: EncodedRecords | None,
    *,
    data: DataArguments,
    training: StageTrainingArguments,
    folder: RunFolder,
    loraplus_lr_ratio: float = 1.0,
    dropout: Dropout = "all",
) -> Outcome:
    """Trains, saves the checkpoint folder and draws the loss; the caller adds its own figures to the summary.

    loraplus_lr_ratio: of adapters; see keju.training.adapters.apply_loraplus. dropout: what of it is on in training.
    """
    guard(model, training)
    callbacks = [RunCallback(folder)]
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStopping(training.early_stopping_patience))
    trainer = TreeTrainer(
        model,
        objective,
        training,
        train_records.trees,
        token_budget=data.token_budget,
        eval_trees=eval_records.trees if eval_records else None,
        tokenizer=tokenizer,
        where=train_records.where,
        callbacks=callbacks,
        loraplus_lr_ratio=loraplus_lr_ratio,
        dropout=dropout,
        autocast=autocast_dtype(training),
        made_with=folder.made_with,
        has_new_schedule=folder.has_new_schedule,
    )
    trainer.train_in(folder)
    trainer.save_model()  # before the evaluation, in which a kill would cost the training
    summary = {}
    if eval_records:
        summary |= trainer.evaluate()
    if folder.is_main:
        plot_loss(folder.metrics_path, Path(training.output_dir) / "loss.png")
    return Outcome(trainer, summary)


def guard(model: PreTrainedModel, training: StageTrainingArguments) -> None:
    """Raises UserError unless `model`, where it is trained, computes token trees as it computes single rows: in the
    precision of its weights, which shows small differences, and in that of training."""
    if not (is_deepspeed_zero3_enabled() or is_quantized(model)):  # which have put it where it belongs
        model.to(training.device)
    if not in_pieces(model):
        verify_trees(model, gradients=True)
    with readable(model, training) as passes:
        if in_pieces(model) or training.bf16 or training.fp16:
            verify_trees(passes, gradients=True)


def check_best_metric(training: StageTrainingArguments, objective: Objective) -> None:
    """Raises UserError for a --metric_for_best_model that evaluations do not measure."""
    name = training.metric_for_best_model
    measured = ("loss", *objective.metric_names)
    if name is not None and name.removeprefix("eval_") not in measured:
        raise UserError(f"--metric_for_best_model {name}: evaluations measure {', '.join(measured)}")


def num_shared(trees: Sequence[Segment]) -> float:
    """How many times fewer tokens the trees hold than rows of prompt + answer would."""
    totals = totals_of(trees)
    return totals.num_unshared_tokens / max(1, totals.num_tokens)


def train_language_model(
    stage: Stage, model_args: StartArguments, data: DataArguments, training: StageTrainingArguments
) -> None:
    """Pretraining and SFT differ in their records and in which of their tokens are trained: in the stage's form."""
    objective = LanguageModelObjective()
    check_best_metric(training, objective)
    folder = open_run(stage.name, model_args, data, training)
    tokenizer, encoder = prepare(folder, model_args, data, training)
    records, held_out = read_records(folder, model_args, data, encoder, stage.form)
    model, model_args = load_start(
        load_causal_lm,
        folder,
        model_args,
        tokenizer,
        training,
        from_scratch=model_args.from_scratch,
    )
    inspect(records, tokenizer, model, form=stage.form)
    model = add_adapters(model, model_args, task_type="CAUSAL_LM")
    outcome = train(
        model,
        objective,
        tokenizer,
        records,
        held_out,
        data=data,
        training=training,
        folder=folder,
        loraplus_lr_ratio=model_args.adapter_lr_ratio,
    )
    folder.finish(**outcome.summary)
