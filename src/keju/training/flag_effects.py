"""Which settings have an effect: what is refused or changes nothing, under which values, and why; what `--help` shows.

The stages that train by transformers.Trainer inherit all of TrainingArguments. What of that does not fit token trees,
or these stages, is refused before anything loads; docs/flags.md, which is made from this table, says the rest.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from keju.training.ranges import Range, above, at_least, between

# The fields of transformers.TrainingArguments that `--help` shows; `--help_all` shows those that work, too.
SHOWN_IN_HELP = (
    *("output_dir", "resume_from_checkpoint", "resume_with_changes", "num_train_epochs", "max_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("activation_checkpointing", "bf16", "fp16", "use_cpu", "deepspeed", "seed", "logging_steps"),
    *("logging_first_step", "eval_strategy", "eval_steps", "save_strategy", "save_steps"),
    *("save_total_limit", "save_only_model", "load_best_model_at_end", "metric_for_best_model", "report_to"),
    *("run_name", "dataloader_num_workers"),
)

# What the numbers among them take; the stages' own settings say that in their types (keju.training.ranges).
INHERITED_RANGES: dict[str, Range] = {
    "per_device_train_batch_size": at_least(1),
    "per_device_eval_batch_size": at_least(1),
    "gradient_accumulation_steps": at_least(1),
    "max_steps": at_least(1, apart=(-1,)),
    "learning_rate": at_least(0),
    "weight_decay": at_least(0),
    "adam_beta1": between(0, 1, open_high=True),
    "adam_beta2": between(0, 1, open_high=True),
    "adam_epsilon": at_least(0),
    "max_grad_norm": at_least(0),
    "label_smoothing_factor": between(0, 1),
    "neftune_noise_alpha": at_least(0),
    "torch_empty_cache_steps": at_least(1),
    "eval_steps": above(0),
    "eval_delay": at_least(0),
    "eval_accumulation_steps": at_least(1),
    "save_steps": above(0),
    "seed": between(0, 2**32 - 1),
    "data_seed": between(0, 2**32 - 1),
    "dataloader_num_workers": at_least(0),
    "dataloader_prefetch_factor": at_least(1),
    "ddp_bucket_cap_mb": at_least(1),
    "ddp_timeout": at_least(1),
    "local_rank": at_least(-1),
}

Check = Callable[[Namespace], Any]


class Condition(NamedTuple):
    """holds: whether a setting has its effect under these values. why: it has none otherwise. is_refused: then it ends
    the run, unless its value is the default; else it warns."""

    holds: Check
    why: str
    is_refused: bool = False


def never(_: Namespace) -> bool:
    return False


def _is_on(strategy: str) -> Check:
    return lambda values: _plain(getattr(values, strategy)) != "no"


def _plain(value: Any) -> str:
    """A strategy in lower case, whether it is text or one of transformers' enumerations."""
    return str(value).rpartition(".")[2].lower()


def _refused(why: str) -> Condition:
    return Condition(never, why, is_refused=True)


def _needs(check: Check, why: str) -> Condition:
    return Condition(check, why, is_refused=True)


_PACKED = _refused("batches are token trees packed by --token_budget")
_COMPILED = _refused("each packed row has a shape of its own, for which everything would be compiled again")
_LIGER = _refused("the layers have kernels of their own")
_HUB = _refused("nothing is uploaded; `hf upload` takes --output_dir to a hub")
_SPREAD = _refused("models are spread over processes by --deepspeed")
_EVALUATION = _refused("evaluation is the stage's own, over packed token trees")
_PRECISION = _refused("evaluation computes as training does (--bf16, --fp16)")
_RESUME = _refused("a run always goes on from its checkpoint exactly, and a signal always saves one")
_LORA = Condition(
    lambda values: getattr(values, "use_peft", False) or getattr(values, "share_base", False),
    "adapters are only trained with --use_peft (in RLHF: --share_base)",
)
_OFFLOAD = Condition(
    lambda values: torch.cuda.is_available() and not values.use_cpu, "all models are in CPU memory anyway"
)
_JOINT = Condition(
    lambda values: values.enable_joint_optimization, "the reward model is frozen: --enable_joint_optimization"
)
_PTX = Condition(lambda values: values.ptx_filename is not None, "there is no --ptx_filename")
_AUXILIARY = Condition(
    lambda values: values.ptx_filename is not None or values.enable_joint_optimization,
    "there is no --ptx_filename and no --enable_joint_optimization",
)
_SAVED = Condition(_is_on("save_strategy"), "--save_strategy is no")
_HELD_OUT = _needs(lambda values: bool(values.eval_filename), "there is no --eval_filename to evaluate on")
_TRACKED = Condition(
    lambda values: values.report_to not in (None, "none", ["none"], []), "there is no --report_to that reads it"
)
_TRACKIO = Condition(lambda values: "trackio" in (values.report_to or ()), "only --report_to trackio reads it")
_DATA_PROCESSES = _needs(
    lambda values: values.dataloader_num_workers > 0, "there are no --dataloader_num_workers that it is about"
)
_CHECKPOINTING = Condition(
    lambda values: values.activation_checkpointing or values.gradient_checkpointing,
    "there is no --activation_checkpointing",
)
_BEST = Condition(
    lambda values: (
        values.load_best_model_at_end
        or _plain(values.save_strategy) == "best"
        or values.early_stopping_patience is not None
    ),
    "neither --load_best_model_at_end nor --save_strategy best nor --early_stopping_patience asks which is best",
)


def _with_loss(*names: str) -> Condition:
    return Condition(
        lambda values: set(names) & set(values.loss_type), f"only --loss_type {' and '.join(names)} reads it"
    )


# By name of the setting.
CONDITIONS: dict[str, Condition] = {
    **dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save"), _LORA),
    **dict.fromkeys(("use_rslora", "use_dora", "loraplus_lr_ratio", "init_lora_weights", "load_in_4bit"), _LORA),
    **dict.fromkeys(("offload_reference", "offload_reward"), _OFFLOAD),
    **dict.fromkeys(("reward_coef", "ranked_filename"), _JOINT),
    "ptx_coef": _PTX,
    "ptx_batch_size": _AUXILIARY,
    "simpo_gamma": _with_loss("simpo"),
    "cpo_alpha": _with_loss("cpo"),
    "discopop_tau": _with_loss("discopop"),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), _with_loss("kto")),
    "generation_batch_size": Condition(lambda values: values.rollout != "vllm", "vLLM makes its own batches"),
    "vllm_gpu_memory": Condition(lambda values: values.rollout == "vllm", "vLLM samples only with --rollout vllm"),
    "kl_horizon": Condition(lambda values: values.kl_target is not None, "--kl_coef adapts only with --kl_target"),
    "resume_with_changes": Condition(
        lambda values: values.resume_from_checkpoint, "there is no --resume_from_checkpoint"
    ),
    "num_train_epochs": Condition(lambda values: values.max_steps <= 0, "--max_steps decides how long the run is"),
    "max_eval_samples": Condition(lambda values: bool(values.eval_filename), "there is no --eval_filename"),
    # transformers.TrainingArguments
    **dict.fromkeys(("save_steps", "save_total_limit", "save_only_model"), _SAVED),
    **dict.fromkeys(("eval_steps", "eval_delay"), Condition(_is_on("eval_strategy"), "--eval_strategy is no")),
    **dict.fromkeys(("eval_strategy", "eval_on_start"), _HELD_OUT),
    "early_stopping_patience": _needs(_is_on("eval_strategy"), "--eval_strategy is no, so that nothing is measured"),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), _BEST),
    **dict.fromkeys(("run_name", "project"), _TRACKED),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACKIO),
    **dict.fromkeys(("dataloader_prefetch_factor", "dataloader_persistent_workers"), _DATA_PROCESSES),
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_in_order"), _DATA_PROCESSES),
    **dict.fromkeys(("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), _CHECKPOINTING),
    **dict.fromkeys(("remove_unused_columns", "train_sampling_strategy", "length_column_name"), _PACKED),
    **dict.fromkeys(("label_names", "dataloader_drop_last"), _PACKED),
    "auto_find_batch_size": _refused("--token_budget bounds the memory of a pass"),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILED),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), _LIGER),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token"), _HUB),
    **dict.fromkeys(("hub_private_repo", "hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("fsdp", "fsdp_config", "parallelism_config", "accelerator_config"), _SPREAD),
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), _EVALUATION),
    **dict.fromkeys(("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"), _EVALUATION),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _PRECISION),
    **dict.fromkeys(("ignore_data_skip", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint"), _RESUME),
    "optim_target_modules": _refused("only GaLore and APOLLO read it, which --optim does not take"),
    "label_smoothing_factor": _refused("each stage has its own loss (see its --help)"),
    "neftune_noise_alpha": _refused("its noise depends on the length of a row, and records share packed rows"),
    "average_tokens_across_devices": _refused("a loss is the mean over the tokens or pairs of all processes"),
    "include_num_input_tokens_seen": _refused("metrics.jsonl has num_tokens in any case"),
    "debug": _refused("it watches the calls of all layers, and over token trees the LM head is not called"),
    "skip_memory_metrics": _refused("memory is not reported; `keju.plan` tells it beforehand"),
    "use_cache": _refused("training has no cache of keys and values"),
    "logging_nan_inf_filter": _refused("a loss that is not finite ends the run"),
    "save_on_each_node": _refused("the first process writes, to a folder that all nodes see"),
    "disable_tqdm": _refused("the progress bar is the stage's own"),
    "do_train": Condition(never, "the script decides what runs"),
    "do_eval": _refused("--eval_filename is evaluated at the end, and --eval_strategy says when else"),
    "do_predict": _refused("pred_pretrain.sh answers prompts, and eval_pretrain.sh evaluates"),
}
