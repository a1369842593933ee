"""Train a policy with PPO against a reward model: a prompt and its sampled responses are one token tree.

python -m keju.train_rlhf --model_name_or_path runs/sft --reward_model_path runs/reward --data_dir runs/data/idiom \
    --output_dir runs/rlhf
"""

from __future__ import annotations

import copy
import math
import time

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from keju.encoding.dataset import EncodedRecords
from keju.encoding.encoder import Encoder
from keju.models.loading import load_causal_lm, load_scalar_model, load_tokenizer
from keju.records.reading import read_records
from keju.records.record import TextRecord
from keju.rl.arguments import PPOArguments, PPODataArguments, PPOModelArguments, same_names
from keju.rl.checkpoint import load_checkpoint, save_checkpoint, save_model
from keju.rl.experience import RewardShaping
from keju.rl.ppo_trainer import PPOTrainer, evaluate_policy
from keju.rl.rewards import AdaptiveKLController, FixedKLController, RunningMoments
from keju.rl.rollout import Sampler
from keju.rl.samples import SampleLog, print_samples, sample_rows
from keju.training.arguments import parse_arguments
from keju.training.crash import MissingEos
from keju.training.launch import run_stage
from keju.training.plots import plot_loss, plot_metrics
from keju.training.progress import Progress, describe
from keju.training.run_folder import RunFolder, read_metrics
from keju.training.stage import inspect, read_trees
from keju.training.stage_model import verify_head
from keju.trees.segment import Segment


def main() -> None:
    models, data, ppo = parse_arguments(PPOModelArguments, PPODataArguments, PPOArguments, description=__doc__)
    folder = RunFolder(
        ppo.output_dir,
        "rlhf",
        arguments=[models, data, ppo],
        overwrite=ppo.overwrite_output_dir,
        resume=ppo.resume_from_checkpoint,
    )
    set_seed(ppo.seed)
    tokenizer = load_tokenizer(
        models.model_name_or_path, flag="--model_name_or_path", chat_template=models.chat_template
    )
    check_same_vocabulary(tokenizer, load_tokenizer(models.reward_model_path, flag="--reward_model_path"))
    prompts, held_out, ptx_trees = read_data(data, ppo, tokenizer)
    trainer = build_trainer(models, data, ppo, tokenizer, prompts, ptx_trees)
    where = [str(data.path(data.train_filename))] * len(prompts)
    inspect(EncodedRecords([Segment(ids) for ids in prompts], where), tokenizer, trainer.actor, form="prompt")
    verify_head(trainer.actor, list(prompts[0]))
    before = evaluate(trainer, held_out, ppo, tokenizer, "before") if held_out else {}
    if folder.checkpoint:
        load_checkpoint(trainer, folder.checkpoint)
    samples = SampleLog(folder.path / "samples.jsonl", last_step=trainer.step)

    train(trainer, ppo, tokenizer, folder, samples)
    after = evaluate(trainer, held_out, ppo, tokenizer, "after") if held_out else {}

    save_model(trainer.actor, tokenizer, folder.path)
    save_model(trainer.critic, tokenizer, folder.path / "critic")
    if trainer.ema_actor is not None:
        save_model(trainer.ema_actor.to(trainer.actor.dtype), tokenizer, folder.path / "ema")
    plot_loss(folder.metrics_path, folder.path / "loss.png", title="Policy loss")
    for name, columns, unit in (
        ("reward", ["reward", "terminal_reward"], "mean score"),
        ("kl", ["kl"], "nats a response, to the reference"),
        ("response_length", ["response_length"], "tokens"),
        ("health", ["clip_fraction", "fraction_finished", "explained_variance"], "share"),
        ("entropy", ["entropy"], "nats a token"),
    ):
        plot_metrics(folder.metrics_path, folder.path / f"{name}.png", columns, title=name, ylabel=unit)
    figures = {"num_prompts": len(prompts)}
    if held_out:
        figures |= {"reward_before": before["reward"], "reward_after": after["reward"], "kl": after["kl"]}
        figures |= {"evaluation_before": before, "evaluation_after": after}
    folder.finish(**figures)


def check_same_vocabulary(actor: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> None:
    """The reward model reads the ids that the actor wrote. Raises ValueError when they mean something else to it."""
    own, other = actor.get_vocab(), reward.get_vocab()
    different = next((token for token in own if other.get(token) != own[token]), None)
    different = different or next((token for token in other if token not in own), None)
    if different is not None:
        raise ValueError(
            f"--reward_model_path: its tokenizer differs from the actor's ({different!r} is {own.get(different)} for "
            f"the actor, {other.get(different)} for the reward model); train it with the actor's tokenizer"
        )


def read_data(data: PPODataArguments, ppo: PPOArguments, tokenizer: PreTrainedTokenizerBase):
    """-> prompts to learn from, held-out prompts (token ids), ptx trees."""
    encoder = Encoder(tokenizer, max_length=10**9)  # whole; what is too long is left out here, by this stage's flags

    def prompts_of(filename: str, flag: str, max_samples: int | None) -> list[list[int]]:
        encoded = read_trees(data, filename, encoder, "prompt", flag=flag, max_samples=max_samples)
        return [list(tree.tokens) for tree in fitting(encoded, data.max_prompt_length, "--max_prompt_length")]

    prompts = prompts_of(data.train_filename, "--train_filename", data.max_train_samples)
    held_out = prompts_of(data.eval_filename, "--eval_filename", data.max_eval_samples) if data.eval_filename else []
    ptx_trees = []
    if data.ptx_filename:
        encoder = Encoder(tokenizer, max_length=min(data.token_budget, data.max_prompt_length + ppo.max_new_tokens))
        path = data.path(data.ptx_filename)
        is_text = isinstance(next(iter(read_records(path, on_bad_line=data.on_bad_line))), TextRecord)
        form = "text" if is_text else "sft"
        ptx_trees = read_trees(data, data.ptx_filename, encoder, form, flag="--ptx_filename", max_samples=None).trees
    return prompts, held_out, ptx_trees


def fitting(encoded: EncodedRecords, limit: int, flag: str) -> list[Segment]:
    kept = [tree for tree in encoded.trees if tree.num_tokens <= limit]
    if not kept:
        raise ValueError(f"{flag} {limit}: all {len(encoded)} prompts are longer; first {encoded.where[0]}")
    if len(kept) < len(encoded):
        print(f"left out {len(encoded) - len(kept)} of {len(encoded)} prompts, longer than {flag} {limit}")
    return kept


def build_trainer(
    models: PPOModelArguments,
    data: PPODataArguments,
    ppo: PPOArguments,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    ptx_trees: list[Segment],
) -> PPOTrainer:
    device = "cuda" if torch.cuda.is_available() and not models.use_cpu else "cpu"
    actor = load_causal_lm(models.model_name_or_path, dtype=models.dtype, tokenizer=tokenizer).to(device)
    reward_model = load_scalar_model(
        models.reward_model_path,
        dtype=models.dtype,
        tokenizer=tokenizer,
        flag="--reward_model_path",
        require_head=True,
    ).to(device)
    # The critic starts as the reward model: it already knows which text is good.
    critic = (
        load_scalar_model(
            models.critic_model_path, dtype=models.dtype, tokenizer=tokenizer, flag="--critic_model_path"
        ).to(device)
        if models.critic_model_path
        else copy.deepcopy(reward_model)
    )
    max_steps = ppo.max_steps
    if max_steps <= 0:
        max_steps = max(1, math.ceil(ppo.num_train_epochs * len(prompts) / ppo.rollout_batch_size))
    num_updates = max_steps * ppo.ppo_epochs * ppo.num_mini_batches
    warmup_steps = ppo.warmup_steps if ppo.warmup_steps >= 1 else ppo.warmup_steps * num_updates
    kl_controller = FixedKLController(ppo.kl_coef)
    if ppo.kl_target is not None:
        kl_controller = AdaptiveKLController(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
    return PPOTrainer(
        actor=actor,
        critic=critic,
        reference=copy.deepcopy(actor),
        reward_model=reward_model,
        prompts=prompts,
        ptx_trees=ptx_trees,
        sampler=Sampler(tokenizer, batch_size=ppo.generation_batch_size, **same_names(ppo, Sampler)),
        shaping=RewardShaping(
            kl_controller=kl_controller,
            moments=RunningMoments() if ppo.normalize_reward else None,
            **same_names(ppo, RewardShaping) | {"clip_reward": ppo.clip_reward or None},
        ),
        token_budget=data.token_budget,
        bf16=models.bf16,
        **same_names(ppo, PPOTrainer) | {"max_steps": max_steps, "warmup_steps": int(warmup_steps)},
    )


def train(
    trainer: PPOTrainer, ppo: PPOArguments, tokenizer: PreTrainedTokenizerBase, folder: RunFolder, samples: SampleLog
) -> None:
    """The rollouts of the run, each logged with its samples; a checkpoint every --save_steps."""
    logged = read_metrics(folder.metrics_path)[-1] if trainer.step else {}  # of the run that is resumed
    unfinished, num_tokens = 0, logged.get("num_tokens", 0)
    start = time.perf_counter() - logged.get("elapsed", 0.0)
    with Progress(trainer.max_steps, "rlhf", unit="rollouts", done=trainer.step) as bar:
        while trainer.step < trainer.max_steps:
            experience, metrics = trainer.train_step()
            num_tokens += metrics["num_tokens"]
            row = {
                "step": trainer.step,
                "loss": metrics["policy_loss"],
                "learning_rate": metrics["actor_learning_rate"],
            }
            row |= metrics | {"num_tokens": num_tokens, "elapsed": round(time.perf_counter() - start, 3)}
            folder.log_metrics(row)
            folder.write_log(f"step {trainer.step}/{trainer.max_steps}: {describe(row)}")
            samples.append(sample_rows(experience, tokenizer, trainer.step))
            shown = {name: metrics[name] for name in ("reward", "kl", "response_length", "tokens_per_second")}
            bar.advance(1, loss=metrics["policy_loss"], **shown)
            # Without a single end there is nothing to learn ending from.
            unfinished = 0 if metrics["fraction_finished"] else unfinished + 1
            if unfinished == 3 and not ppo.allow_unfinished:
                raise MissingEos(trainer.step, share=1.0)
            is_last = trainer.step == trainer.max_steps
            if ppo.save_strategy == "steps" and trainer.step % ppo.save_steps == 0 and not is_last:
                save_checkpoint(trainer, tokenizer, folder.path, keep=ppo.save_total_limit)


def evaluate(
    trainer: PPOTrainer, prompts: list[list[int]], ppo: PPOArguments, tokenizer: PreTrainedTokenizerBase, when: str
) -> dict[str, float]:
    """Held-out reward and KL, with the same seed of sampling before and after; prints two samples."""
    scored, figures = evaluate_policy(trainer, prompts, seed=ppo.seed)
    print(f"held-out prompts, {when}: {describe(figures)}")
    print_samples(scored, tokenizer, count=2)
    return figures


if __name__ == "__main__":
    run_stage(main)
