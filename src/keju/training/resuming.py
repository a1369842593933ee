"""What decides the result of a run: kept in each of its checkpoints, and compared when a run goes on from one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from keju.errors import UserError
from keju.models.checkpoint_files import read_object
from keju.records.digests import data_digest
from keju.training.optimization import MEASURED

# Settings that do not change what the weights become. Every other one decides.
NEUTRAL = frozenset(
    {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "resume_with_changes"),
        # Compared by content, as inputs of the run: a folder may move.
        *("data_dir", "train_filename", "ptx_filename", "ranked_filename", "model_name_or_path", "tokenizer_name"),
        *("chat_template", "reward_model_path", "critic_model_path", "judge_model_path", "deepspeed"),
        *("base_model", "reward_base_model", "critic_base_model", "judge_base_model"),
        *("token_cache", "token_cache_dir", "num_workers", "reference_cache_dir"),
        *("eval_filename", "max_eval_samples", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
        *("per_device_eval_batch_size", "do_train", "do_eval", "do_predict", "prediction_loss_only"),
        *("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object", "batch_eval_metrics"),
        *("include_for_metrics", "bf16_full_eval", "fp16_full_eval"),
        *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name", "project"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"),
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        *("hub_revision", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
        *("ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb", "debug", "skip_memory_metrics", "local_rank"),
        *("torch_empty_cache_steps", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
        *("remove_unused_columns", "label_names", "length_column_name", "offload_reference", "offload_reward"),
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "allow_unfinished"),
    }
)
# Of these, what decides after all where a run goes by its evaluations.
EVALUATION = frozenset(
    {"eval_filename", "max_eval_samples", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "save_steps"}
)
# Settings that the files of a checkpoint have the form of: these cannot change, with no flag.
FIXED = frozenset(
    {
        *("optim", "optim_args", "optim_target_modules", "dtype", "from_scratch", "config_overrides", "deepspeed"),
        *(
            "adapters",
            "use_peft",
            "share_base",
            "load_in_4bit",
            "lora_r",
            "lora_target_modules",
            "lora_modules_to_save",
        ),
        *("lora_alpha", "use_rslora", "use_dora", "init_lora_weights", "enable_joint_optimization"),
        *("normalize_reward", "kl_target", "ema_decay"),
        *("freeze", "unfreeze", "freeze_first_layers", "freeze_last_layers"),
    }
)

# Of the others, those that an optimizer and its schedule keep for themselves.
OPTIMIZER = frozenset(
    {
        *("learning_rate", "actor_learning_rate", "critic_learning_rate", "loraplus_lr_ratio", "weight_decay"),
        *("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
        *("max_steps", "num_train_epochs"),
    }
)


def deciding(stage: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{"stage", "arguments"}: what a checkpoint keeps of the settings of a run (see NEUTRAL)."""
    neutral = NEUTRAL - EVALUATION if _goes_by_evaluations(arguments) else NEUTRAL
    kept = {name: value for name, value in arguments.items() if name not in neutral}
    if "adapters" in kept and kept["adapters"] is None:
        kept["adapters"] = "continue"  # what it means
    if (kept.get("max_steps") or -1) > 0:
        kept.pop("num_train_epochs", None)  # has no effect beside it
    return {"stage": stage, "arguments": kept}


def _goes_by_evaluations(arguments: Mapping[str, Any]) -> bool:
    """Whether they decide which weights are left, when the run ends, or the learning rate."""
    schedule = str(arguments.get("lr_scheduler_type")).rpartition(".")[2].lower()
    is_best_left = arguments.get("load_best_model_at_end") or arguments.get("early_stopping_patience") is not None
    return bool(is_best_left) or schedule in MEASURED


def changed_settings(checkpoint: Path, known: Any, now: Mapping[str, Any], *, accept: bool) -> dict[str, tuple]:
    """{name: (value in the checkpoint, value now)} of the settings that differ.

    Args:
        checkpoint: where `known` was read, for messages.
        known: what the checkpoint keeps; None where it is of a version that kept nothing.
        now: `deciding` of this run.
        accept: --resume_with_changes was given.
    Raises:
        UserError: another stage's checkpoint, a difference without `accept`, or one that no flag makes possible.
    """
    if known is None:
        return {}
    if not isinstance(known, dict) or not isinstance(known.get("arguments"), dict):
        raise UserError(f"--resume_from_checkpoint: {checkpoint}: its manifest does not say what it was made with")
    if known.get("stage") != now["stage"]:
        raise UserError(
            f"--resume_from_checkpoint: {checkpoint} is of the stage {known.get('stage')}, this is {now['stage']}; "
            f"to start from its weights give --model_name_or_path {checkpoint}"
        )
    before, after = known["arguments"], now["arguments"]
    # A setting that only one of two versions knows was, or is, what it always was.
    different = {name: (before[name], after[name]) for name in after if name in before and before[name] != after[name]}
    for name in ("max_steps", "num_train_epochs"):
        if (name in before) != (name in after):
            different[name] = (before.get(name), after.get(name))
    fixed = {name: values for name, values in different.items() if name in FIXED}
    if fixed:
        raise UserError(
            f"--resume_from_checkpoint: {checkpoint} was made with {_described(fixed, 0)}, now {_described(fixed, 1)}; "
            "its files cannot be loaded otherwise"
        )
    if different and not accept:
        raise UserError(
            f"--resume_from_checkpoint: {checkpoint} was made with {_described(different, 0)}, now "
            f"{_described(different, 1)}; give the same, or --resume_with_changes to go on with the new ones"
        )
    return different


def changed_inputs(checkpoint: Path, known: Any, now: Mapping[str, str], *, accept: bool) -> list[str]:
    """Flags of the inputs (records, models, a tokenizer) whose content is not what it was.

    Args: as of `changed_settings`; known, now: {flag: hash of what it names}; of `known` only what `now` has, too.
    Raises:
        UserError: as `changed_settings` does.
    """
    inputs = known.get("inputs") if isinstance(known, dict) else None
    if not isinstance(inputs, dict):
        return []
    different = sorted(name for name, digest in now.items() if inputs.get(name) != digest)
    if not different or (accept and not FIXED.intersection(different)):
        return different
    what = ", ".join(f"--{name}" for name in different)
    way = "" if FIXED.intersection(different) else ", or --resume_with_changes to go on with what is there now"
    raise UserError(
        f"--resume_from_checkpoint: {checkpoint} was made with other content of {what}; give the same as then{way}"
    )


def _described(different: Mapping[str, Sequence[Any]], side: int) -> str:
    shown = [f"--{name} {_value(values[side])}" for name, values in different.items()]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def digest_of(parts: Iterable[str]) -> str:
    """One hash, hex, of the names and hashes of which an input consists."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:32]


def model_digest(name: str, memory: Path, base: str | None = None) -> str:
    """A hash of the weights and the configuration in a folder, and of what its adapters stand on, which is `base` where
    that is given; of a hub or a named size, the name."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    parts = [f"{file.name} {data_digest(file, memory)}" for file in files]
    if (folder / "adapter_config.json").is_file():
        base = base or read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        parts += [model_digest(base, memory)] if isinstance(base, str) and base != name else []
    return digest_of(parts)


def check_new_schedule(*, deepspeed: bool) -> None:
    """Raises UserError where optimizers that are loaded cannot be given other settings."""
    if deepspeed:
        raise UserError("--resume_with_changes: under DeepSpeed learning rates and schedule cannot change on the way")


def apply_settings(optimizer: Optimizer, scheduler: LRScheduler, groups: Sequence[Mapping[str, Any]]) -> None:
    """Gives an optimizer and a scheduler whose states were loaded the settings of this run again.

    Args:
        groups: the optimizer's parameter groups as they were before the loading; "params" is not looked at.
    Raises:
        UserError: a schedule that does not follow from its step alone.
    """
    if not isinstance(scheduler, LambdaLR):
        raise UserError(
            f"--resume_with_changes: a {type(scheduler).__name__} cannot change its settings in the middle; "
            "give the learning rate and schedule that the checkpoint was made with"
        )
    scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in groups]
    rates = [
        base * rate(scheduler.last_epoch) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, wanted, rate in zip(optimizer.param_groups, groups, rates, strict=True):
        group |= {name: value for name, value in wanted.items() if name != "params"} | {"lr": rate}
    scheduler._last_lr = rates
