"""Settings of PPO. Names are those of DeepSpeed-Chat, TRL and transformers; published defaults (docs/rlhf.md)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from transformers.training_args import OptimizerNames

from keju.errors import UserError
from keju.rl.experience import KL_IN_LOSS
from keju.rl.modes import rules_of
from keju.stages.rlhf import STAGE
from keju.training.optimization import check_schedule, described, optimizer_class
from keju.training.ranges import (
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Seed,
    Share,
    StepLimit,
)
from keju.training.stage_arguments import (
    BASE_MODEL_HELP,
    TENSOR_PARALLEL_HELP,
    FreezingArguments,
    ThinkingArguments,
    TokenCacheArguments,
    check_tensor_parallel_size,
)


def setting(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class PPOModelArguments(FreezingArguments):
    """Which models take part."""

    _argument_group_name = "models"

    model_name_or_path: str = field(metadata={"help": "The actor: an SFT checkpoint. Its start is the reference, too."})
    reward_model_path: str = field(
        metadata={"help": "A reward checkpoint. It may have another tokenizer than the actor: it then reads the text."}
    )
    base_model: str | None = setting(None, BASE_MODEL_HELP)
    adapters: Literal["continue", "merge"] | None = setting(
        None, "What becomes of adapters in --model_name_or_path: trained on (continue, the default), or merged (merge)."
    )
    reward_base_model: str | None = setting(None, "The same for the adapters in --reward_model_path.")
    chat_template: str | None = setting(None, "Chat template by name (llama2, vicuna ...), or a Jinja file.")
    critic_model_path: str | None = setting(
        None, "Where the critic starts; by default as the reward model, or as the actor if they differ in tokenizer."
    )
    critic_base_model: str | None = setting(None, "The base of the adapters in --critic_model_path.")
    judge_model_path: str | None = setting(
        None, "A reward model that trains nobody: it watches whether answers get better, for the alarms and figures."
    )
    judge_base_model: str | None = setting(None, "The base of the adapters in --judge_model_path.")
    share_base: bool = setting(
        False, "Keep the actor's start as one frozen base, the reference; actor and critic are LoRA adapters on it."
    )
    lora_r: PositiveInt = setting(8, "Rank of the adapters.")
    lora_alpha: PositiveInt = setting(16, "Scale of the adapters, divided by their rank.")
    lora_target_modules: list[str] | None = setting(None, "Layers that get adapters; all linear layers by default.")
    use_rslora: bool = setting(False, "Divide --lora_alpha by the root of the rank (rsLoRA).")
    use_dora: bool = setting(False, "Train the lengths of the weights' rows apart (DoRA).")
    loraplus_lr_ratio: PositiveFloat = setting(
        1.0, "Learning rate of B over that of A (LoRA+, published: 16); 1: the same."
    )
    init_lora_weights: Literal["default", "gaussian"] = setting(
        "default", "Where adapters start: B = 0, A uniform or normal. What changes the base cannot share it."
    )
    load_in_4bit: bool = setting(False, "Keep the frozen base in 4 bits, by bitsandbytes (QLoRA); with --share_base.")
    offload_reference: bool = setting(False, "Keep the reference in CPU memory between its passes.")
    offload_reward: bool = setting(False, "Keep reward model and judge in CPU memory between their passes.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Precision of all weights in memory.")
    bf16: bool = setting(False, "Compute in bfloat16 (autocast) over the weights.")
    activation_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory.")
    use_cpu: bool = setting(False, "Stay on the CPU where there is a GPU.")

    def __post_init__(self):
        for role in ("critic", "judge"):
            if getattr(self, f"{role}_base_model") and not getattr(self, f"{role}_model_path"):
                raise UserError(f"--{role}_base_model: there is no --{role}_model_path")
        self.check_freezing(has_adapters=self.share_base)
        if self.load_in_4bit and not self.share_base:
            raise UserError("--load_in_4bit: weights in 4 bits cannot be trained; it needs --share_base")
        if self.share_base and self.offload_reference:
            raise UserError("--offload_reference: with --share_base the reference is the base of the actor itself")


@dataclass
class PromptArguments(ThinkingArguments, TokenCacheArguments):
    """Which prompts are answered."""

    _argument_group_name = "data"

    data_dir: str = field(metadata={"help": "Folder of the record files."})
    train_filename: str = setting(STAGE.train_file, "Records whose prompts are answered, in --data_dir.")
    eval_filename: str | None = setting(STAGE.eval_file, "Records of held-out prompts: reward before and after.")
    max_prompt_length: PositiveInt = setting(256, "Prompts of more tokens are left out and counted.")
    token_budget: PositiveInt = setting(4096, "Tokens of one packed row: the unit of memory.")
    on_bad_line: Literal["error", "skip"] = setting(
        "error", "A line that cannot be read stops the run, or is skipped and counted."
    )
    max_train_samples: PositiveInt | None = setting(None, "Read at most so many training records.")
    max_eval_samples: PositiveInt | None = setting(64, "Read at most so many held-out records.")

    def path(self, filename: str) -> Path:
        """The record file `filename` in `data_dir` (an absolute path stays as it is)."""
        return Path(self.data_dir).expanduser() / Path(filename).expanduser()


@dataclass
class PPODataArguments(PromptArguments):
    ranked_filename: str = setting("ranked_train.jsonl", "Ranked records that a jointly optimised reward learns from.")
    ptx_filename: str | None = setting(None, "Text, chat or ranked records for the ptx loss, in --data_dir.")


@dataclass
class PPOArguments:
    """How the policy is trained."""

    _argument_group_name = "PPO"

    output_dir: str = field(metadata={"help": "Folder of this run: actor, critic/, log, metrics, samples and plots."})
    deepspeed: str | None = setting(
        None, "A DeepSpeed configuration (JSON): actor and critic are trained under it, by one process or several."
    )
    tensor_parallel_size: PositiveInt = setting(1, TENSOR_PARALLEL_HELP)
    overwrite_output_dir: bool = setting(False, "Delete the run that --output_dir holds and start again.")
    resume_from_checkpoint: str | None = setting(None, "A checkpoint folder, or `auto`: the newest in --output_dir.")
    resume_with_changes: bool = setting(
        False, "Go on from a checkpoint although settings or data are others than those it was made with."
    )
    seed: Seed = setting(42, "Of prompts, samples and minibatches.")

    num_train_epochs: PositiveFloat = setting(1.0, "Passes over the prompts.")
    max_steps: StepLimit = setting(-1, "Rollouts in all; above 0, it wins over --num_train_epochs.")
    rollout_batch_size: PositiveInt = setting(16, "Prompts of a rollout.")
    num_responses: PositiveInt = setting(4, "Responses sampled for each prompt: the branches of its tree.")
    max_new_tokens: PositiveInt = setting(256, "A response is cut off there.")
    temperature: PositiveFloat = setting(1.0, "Of sampling, and on both sides of the ratio.")
    top_p: PositiveShare = setting(
        1.0, "Below 1: sample only from the likeliest tokens of so much mass (the KL gets biased)."
    )
    top_k: NonNegativeInt = setting(0, "Above 0: sample only from so many tokens (the KL gets biased).")
    rollout: Literal["keju", "vllm"] = setting("keju", "Who samples: our own loop, or vLLM where it is installed.")
    vllm_gpu_memory: PositiveShare = setting(0.3, "The share of the GPU's memory that vLLM takes.")
    generation_batch_size: PositiveInt = setting(64, "Responses generated at once.")
    allow_unfinished: bool = setting(False, "Go on when no response of three steps in a row has ended by itself.")

    enable_joint_optimization: bool = setting(
        False, "The reward model is the critic, too, and both go on learning; by default it is frozen."
    )
    reward_coef: NonNegativeFloat = setting(1.0, "Weight of the reward model's own loss when it is optimised jointly.")
    ppo_mode: Literal["keju", "deepspeed_chat"] = setting("keju", "Differences: see keju/rl/modes.py.")
    ppo_epochs: PositiveInt = setting(1, "Passes over a rollout.")
    num_mini_batches: PositiveInt = setting(4, "Optimizer steps a pass.")
    kl_coef: NonNegativeFloat = setting(0.1, "Weight of the KL to the reference in the reward.")
    kl_estimator: Literal["k1", "k2", "k3"] = setting("k1", "How that KL is estimated at sampled tokens.")
    kl_in_loss: bool = setting(False, "Put the KL into the policy loss, not into the reward (--kl_estimator k2 or k3).")
    kl_target: PositiveFloat | None = setting(None, "Adapt --kl_coef until a response's KL is so many nats.")
    kl_horizon: PositiveInt = setting(10000, "Responses over which --kl_coef adapts.")
    normalize_reward: bool | None = setting(None, "Scores in units of their running deviation. [keju: true]")
    clip_reward: NonNegativeFloat = setting(5.0, "Scores are clipped to +- this; 0: not at all.")
    missing_eos_penalty: NonNegativeFloat | None = setting(None, "Taken off responses that were cut off. [keju: 1]")
    length_penalty: FiniteFloat = setting(0.0, "Taken off for each token of a response.")
    gamma: PositiveShare = setting(1.0, "Discount.")
    lam: Share = setting(0.95, "Lambda of GAE.")
    whiten_advantages: bool | None = setting(None, "Advantages with mean 0, deviation 1 over a rollout. [keju: true]")
    early_stop_kl: PositiveFloat | None = setting(
        None, "Leave out the rest of a rollout's updates once the policy has moved so many nats a token."
    )
    value_warmup_steps: NonNegativeInt = setting(0, "First rollouts that train the critic alone.")
    cliprange: PositiveFloat = setting(0.2, "Of the policy ratio.")
    cliprange_value: PositiveFloat = setting(0.2, "Of the critic's values.")
    ptx_coef: NonNegativeFloat | None = setting(
        None, "Weight of the language-model loss. [keju: 0.1, deepspeed_chat: 27.8]"
    )
    ptx_batch_size: NonNegativeInt = setting(
        0, "Records of a ptx or ranked minibatch; 0: as many as prompts in a minibatch."
    )
    actor_learning_rate: NonNegativeFloat = setting(9.65e-6, "Peak learning rate of the actor.")
    critic_learning_rate: NonNegativeFloat = setting(5e-6, "Peak learning rate of the critic.")
    optim: OptimizerNames | str = setting("adamw_torch", "The optimizer of both, as --optim of the other stages.")
    optim_args: str | None = setting(None, "Settings of that optimizer, as name=value,name=value.")
    weight_decay: NonNegativeFloat = setting(0.0, "Of the optimizer, for both.")
    lr_scheduler_type: str = setting("cosine", "Schedule of both learning rates.")
    warmup_steps: NonNegativeFloat = setting(0.03, "Optimizer steps of warm-up; below 1: share of all.")
    max_grad_norm: NonNegativeFloat = setting(
        1.0, "Gradients of actor and critic are clipped to it, each by itself; 0: not at all."
    )
    ema_decay: Fraction = setting(0.0, "Moving average of the actor, saved in ema/ (DeepSpeed-Chat: 0.992); 0: none.")

    on_alarm: Literal["warn", "stop", "rollback"] = setting(
        "warn", "What an alarm of the health monitor does: a line, the end, or a step back with twice the --kl_coef."
    )
    alarm_window: PositiveInt = setting(
        10, "Steps that the monitor averages: it compares the last ones with the first."
    )
    alarm_kl: PositiveFloat = setting(
        0.5, "Nats a token to the reference above which the monitor calls the KL too high."
    )

    save_strategy: Literal["steps", "no"] = setting("steps", "Checkpoints every --save_steps, or none.")
    save_steps: PositiveInt = setting(50, "Rollouts between two checkpoints.")
    save_total_limit: PositiveInt = setting(2, "Checkpoints kept; older ones are deleted.")

    def __post_init__(self):
        check_tensor_parallel_size(self.tensor_parallel_size)
        check_schedule(self.lr_scheduler_type)
        optimizer_class(described(self.optim, self.optim_args))
        for name, default in rules_of(self.ppo_mode).defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        if self.kl_in_loss and self.kl_estimator == "k1":
            raise UserError(KL_IN_LOSS, option="kl_in_loss")
        if self.on_alarm == "rollback" and self.save_strategy == "no":
            raise UserError("--on_alarm rollback goes back to a checkpoint; it needs --save_strategy steps")
        if self.num_mini_batches > self.rollout_batch_size:
            raise UserError(
                f"--num_mini_batches {self.num_mini_batches} exceeds --rollout_batch_size {self.rollout_batch_size}"
            )
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UserError("--overwrite_output_dir deletes what --resume_from_checkpoint needs; give one of the two")


def options_of(role: str) -> dict[str, str]:
    """What a stage with several models calls the options of one, for `renamed_options`; its tokenizer is its own."""
    if role == "actor":
        return {"tokenizer_name": "model_name_or_path"}
    path = f"{role}_model_path"
    return {"model_name_or_path": path, "tokenizer_name": path, "base_model": f"{role}_base_model"}


def same_names(arguments: PPOArguments, kind: type) -> dict[str, object]:
    """The flags that have the name of a setting of `kind`."""
    flags = {item.name for item in fields(arguments)}
    return {item.name: getattr(arguments, item.name) for item in fields(kind) if item.name in flags}
