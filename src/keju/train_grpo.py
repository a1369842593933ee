"""Train a policy with GRPO (arXiv 2402.03300), the modern alternative to PPO: TRL's GRPOTrainer with our models.

No critic: an answer's advantage is its reward compared with those of the other answers to its prompt. Prompts are
rendered, answers sampled and rewards read by our own code; the loss and the loop are TRL's. The policy trains without
dropout, as in PPO.

python -m keju.train_grpo --model_name_or_path runs/sft --reward_model_path runs/reward --data_dir runs/data/idiom \
    --output_dir runs/grpo
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from keju.encoding.store_key import tokenizer_digest
from keju.errors import UserError, renamed_options
from keju.models.adapter_folder import holds_adapters
from keju.models.backbone import DerivedHead
from keju.models.configurations import check_model, check_positions, check_rows
from keju.models.loading import load_causal_lm, load_scalar_model, load_tokenizer
from keju.models.padded_rows import position_by_mask
from keju.rl.arguments import PromptArguments, options_of
from keju.rl.grpo_trainer import ResumableGRPOTrainer
from keju.rl.prompts import read_prompts
from keju.rl.response_trees import branch_trees
from keju.rl.rollout import Rollout, Sampler
from keju.rl.translation import differences
from keju.stages.grpo import STAGE
from keju.training.answer_scores import answer_rewards
from keju.training.arguments import BASE_MODEL_HELP, parse_arguments
from keju.training.crash import NonFiniteLoss, name_records
from keju.training.launch import run_stage
from keju.training.optimization import check_schedule
from keju.training.plots import plot_loss, plot_panels
from keju.training.progress import RunCallback
from keju.training.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Seed, StepLimit, at_least
from keju.training.stage import open_run, start_of
from keju.training.stage_arguments import FreezingArguments
from keju.training.starts import check_adapters, merged_start, remove_start
from keju.training.tree_guard import verify_trees
from keju.trees.lazy_trees import RootTokens

PANELS = {
    "reward": ("reward",),
    "deviation of rewards within a prompt": ("reward_std",),
    "KL to the start (nats a token)": ("kl",),
    "entropy (nats a token)": ("entropy",),
    "response length (tokens)": ("completions/mean_length",),
    "cut off (share)": ("completions/clipped_ratio",),
}


@dataclass
class GRPOModelArguments(FreezingArguments):
    _argument_group_name = "models"

    model_name_or_path: str = field(metadata={"help": "The policy's start: an SFT checkpoint."})
    reward_model_path: str = field(metadata={"help": "A reward checkpoint with the policy's tokenizer."})
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    adapters: Literal["merge"] | None = field(
        default=None, metadata={"help": "merge: adapters in --model_name_or_path are merged; a whole model is trained."}
    )
    reward_base_model: str | None = field(
        default=None, metadata={"help": "Folder of the base of adapters in --reward_model_path, if they name another."}
    )
    chat_template: str | None = field(default=None, metadata={"help": "Chat template by name, or a Jinja file."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Precision."})

    def __post_init__(self):
        self.check_freezing(has_adapters=False)


@dataclass
class GRPOArguments:
    _argument_group_name = "GRPO"

    output_dir: str = field(metadata={"help": "Folder of this run."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that --output_dir holds."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint folder, or `auto`: the newest in --output_dir."}
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint although settings or data are others than those it was made with."},
    )
    seed: Seed = field(default=42, metadata={"help": "Of prompts and samples."})
    max_steps: StepLimit = field(
        default=-1, metadata={"help": "Rollouts in all; above 0, it wins over --num_train_epochs."}
    )
    num_train_epochs: PositiveFloat = field(default=1.0, metadata={"help": "Passes over the prompts."})
    rollout_batch_size: PositiveInt = field(default=16, metadata={"help": "Prompts of a rollout."})
    num_responses: Annotated[int, at_least(2)] = field(
        default=4, metadata={"help": "Answers to each prompt, at least 2: they are compared."}
    )
    max_new_tokens: PositiveInt = field(default=256, metadata={"help": "An answer is cut off there."})
    temperature: PositiveFloat = field(default=1.0, metadata={"help": "Of sampling."})
    learning_rate: NonNegativeFloat = field(default=1e-6, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Course of the learning rate."})
    warmup_steps: NonNegativeFloat = field(
        default=0.03, metadata={"help": "Warm-up steps; below 1: share of all steps."}
    )
    kl_coef: NonNegativeFloat = field(
        default=0.04, metadata={"help": "Weight of the KL to the start in the loss (TRL: beta)."}
    )
    cliprange: PositiveFloat = field(default=0.2, metadata={"help": "Of the policy ratio (TRL: epsilon)."})
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"] = field(
        default="dapo", metadata={"help": "How the loss is averaged and clipped; names of TRL's GRPOConfig."}
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 (autocast) over the weights."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})
    save_strategy: Literal["steps", "no"] = field(
        default="steps", metadata={"help": "Checkpoints every --save_steps, or none."}
    )
    save_steps: PositiveInt = field(default=50, metadata={"help": "Rollouts between two checkpoints."})
    save_total_limit: PositiveInt = field(default=2, metadata={"help": "Checkpoints kept; older ones are deleted."})

    def __post_init__(self):
        check_schedule(self.lr_scheduler_type)
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UserError("--overwrite_output_dir deletes what --resume_from_checkpoint needs; give one of the two")


@renamed_options(tokenizer_name="model_name_or_path", max_length="max_prompt_length")
def main() -> None:
    models, data, grpo = parse_arguments(GRPOModelArguments, PromptArguments, GRPOArguments, description=__doc__)
    check_adapters(models.adapters, models.model_name_or_path)
    if holds_adapters(models.model_name_or_path) and models.adapters is None:
        raise UserError(
            f"--model_name_or_path: {models.model_name_or_path} holds adapters, and GRPO trains whole models; "
            "--adapters merge makes one of them first"
        )
    folder = open_run(STAGE.name, models, data, grpo)
    set_seed(grpo.seed)
    tokenizer = load_tokenizer(models.model_name_or_path, chat_template=models.chat_template)
    with renamed_options(**options_of("reward")):
        others = differences(tokenizer, load_tokenizer(models.reward_model_path))
    if others:
        raise UserError(
            f"--reward_model_path: GRPO needs a reward model with the policy's tokenizer, PPO does not; this one has "
            f"another {' and '.join(others)}"
        )
    check_model(models.model_name_or_path, base=models.base_model)
    reward_base = models.reward_base_model
    with renamed_options(**options_of("reward")):
        check_model(models.reward_model_path, base=reward_base)
        check_rows(models.reward_model_path, data.max_prompt_length + grpo.max_new_tokens, base=reward_base)
    folder.identify(tokenizer_name=tokenizer_digest(tokenizer), **start_of(None, models, "reward_model_path"))
    records = read_prompts(data, tokenizer, data.train_filename, max_samples=data.max_train_samples)
    others = read_prompts(
        data,
        tokenizer,
        data.eval_filename or data.train_filename,
        option="eval_filename",
        max_samples=data.max_eval_samples,
    )
    folder.identify(train_filename=records.digest)
    prompts, held_out = RootTokens(records.trees), RootTokens(others.trees)
    if len(prompts) < grpo.rollout_batch_size:
        raise UserError(
            f"--rollout_batch_size {grpo.rollout_batch_size}: --train_filename {data.train_filename} has only "
            f"{len(prompts)} prompts"
        )
    longest = max(map(len, [*prompts, *held_out])) + grpo.max_new_tokens
    for role, path, base in (
        ("actor", models.model_name_or_path, models.base_model),
        ("reward", models.reward_model_path, reward_base),
    ):
        with renamed_options(**options_of(role)):
            check_positions(path, longest, what=f"prompts and --max_new_tokens {grpo.max_new_tokens}", base=base)
    if models.adapters == "merge":
        start = merged_start(
            folder, models.model_name_or_path, base=models.base_model, dtype=models.dtype, tokenizer=tokenizer
        )
        models = replace(models, model_name_or_path=str(start), base_model=None, adapters=None)
    policy = load_causal_lm(models.model_name_or_path, dtype=models.dtype, tokenizer=tokenizer, base=models.base_model)
    models.freezing().apply(policy)
    check_head(policy)
    position_by_mask(policy)
    with renamed_options(**options_of("reward")):
        judge = load_scalar_model(
            models.reward_model_path, dtype=models.dtype, tokenizer=tokenizer, require_head=True, base=reward_base
        )
        verify_trees(judge)
    rewards = Rewards(judge.eval(), data.token_budget)
    sampler = Sampler(tokenizer, grpo.num_responses, grpo.max_new_tokens, temperature=grpo.temperature)
    before = rewards.of_policy(policy, sampler, held_out, grpo.seed)
    print(f"held-out prompts, before: reward {before:.3f}")

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is new; the pinned version has it
    trainer = ResumableGRPOTrainer(
        policy,
        reward_funcs=reward,
        args=trl_settings(grpo),
        train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(len(prompts))]}),
        processing_class=tokenizer,
        callbacks=[RunCallback(folder)],
        rollout_func=rollout_function(prompts, records.where, sampler, rewards),
        made_with=folder.made_with,
        has_new_schedule=folder.has_new_schedule,
    )
    trainer.remove_callback(PrinterCallback)  # the bar is ours
    remove_start(folder)  # TRL has loaded its reference from there
    if trainer.ref_model is not None:
        position_by_mask(trainer.ref_model)
    trainer.train_in(folder)
    trainer.save_model()  # before the evaluation, in which a kill would cost the training
    policy = trainer.saved_model()
    after = rewards.of_policy(policy, sampler, held_out, grpo.seed)
    print(f"held-out prompts, after: reward {after:.3f}")
    plot_loss(folder.metrics_path, folder.path / "loss.png")
    plot_panels(folder.metrics_path, folder.path / "curves.png", PANELS)
    folder.finish(num_prompts=len(prompts), reward_before=before, reward_after=after)


class Rewards:
    """The reward model's scores of responses, each prompt with its responses one tree."""

    def __init__(self, model: PreTrainedModel, token_budget: int) -> None:
        self.model, self.token_budget = model, token_budget

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> list[float]:
        trees = [
            tree
            for rollout in rollouts
            for tree in branch_trees(
                rollout.prompt, dict(enumerate(response.ids for response in rollout.responses)), self.token_budget
            )
        ]
        scores = answer_rewards(self.model, trees, token_budget=self.token_budget)
        return [score for group in scores for score in group]

    def of_policy(self, policy: PreTrainedModel, sampler: Sampler, prompts, seed: int) -> float:
        scores = self.of_rollouts(sampler.sample(policy, prompts, seed))
        return sum(scores) / len(scores)


def check_head(model: PreTrainedModel) -> None:
    """Raises UserError where log-probabilities are not the LM head's weight times the last hidden states."""
    verify_trees(model, gradients=True)
    if isinstance(model.get_output_embeddings(), DerivedHead):
        raise UserError(
            f"--model_name_or_path: TRL multiplies by the weight of the LM head as it is, which is not how "
            f"{type(model).__name__} computes its logits; train_rlhf trains this model"
        )


def rollout_function(
    prompts: Sequence[Sequence[int]], where: Sequence[str], sampler: Sampler, rewards: Rewards
) -> Callable[[list[str], GRPOTrainer], dict[str, list | None]]:
    """Our sampler in the place of TRL's: prompts are the ids that our encoder made, and stay so. Their scores go on to
    the reward function. A score that is not finite ends the run: TRL would train on, and finish."""

    def roll_out(numbers: list[str], trainer: GRPOTrainer) -> dict[str, list | None]:
        groups = [(int(number), len(list(group))) for number, group in itertools.groupby(numbers)]
        (count,) = {count for _, count in groups}
        policy = trainer.accelerator.unwrap_model(trainer.model)
        chosen = [prompts[number] for number, _ in groups]
        seed = trainer.args.seed * 1_000_003 + trainer.state.global_step + 1
        rollouts = replace(sampler, num_responses=count).sample(policy, chosen, seed)
        scores = rewards.of_rollouts(rollouts)
        if not all(map(math.isfinite, scores)):
            places = [where[number] for number, _ in groups]
            raise NonFiniteLoss(trainer.state.global_step + 1, name_records(places), name="reward")
        return {
            "prompt_ids": [list(rollout.prompt) for rollout in rollouts for _ in rollout.responses],
            "completion_ids": [list(response.ids) for rollout in rollouts for response in rollout.responses],
            "logprobs": None,
            "score": scores,
        }

    return roll_out


def reward(score: list[float], **_) -> list[float]:
    """What TRL calls: the scores that came with the rollouts."""
    return score


def trl_settings(grpo: GRPOArguments) -> GRPOConfig:
    return GRPOConfig(
        grpo.output_dir,
        seed=grpo.seed,
        max_steps=grpo.max_steps,
        num_train_epochs=grpo.num_train_epochs,
        per_device_train_batch_size=grpo.rollout_batch_size * grpo.num_responses,
        num_generations=grpo.num_responses,
        max_completion_length=grpo.max_new_tokens,
        temperature=grpo.temperature,
        learning_rate=grpo.learning_rate,
        lr_scheduler_type=grpo.lr_scheduler_type,
        warmup_steps=grpo.warmup_steps,
        beta=grpo.kl_coef,
        epsilon=grpo.cliprange,
        loss_type=grpo.loss_type,
        bf16=grpo.bf16,
        use_cpu=grpo.use_cpu,
        gradient_checkpointing=False,
        disable_dropout=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss of NaN ends the run
        save_strategy=grpo.save_strategy,
        save_steps=grpo.save_steps,
        save_total_limit=grpo.save_total_limit,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


if __name__ == "__main__":
    run_stage(main)
