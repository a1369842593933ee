"""Train a policy with PPO against a reward model: a prompt and its sampled responses are one token tree.

Actor and critic train without dropout: the first ratio of new to old probabilities must be 1.

python -m keju.train_rlhf --model_name_or_path runs/sft --reward_model_path runs/reward --data_dir runs/data/idiom \
    --output_dir runs/rlhf
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from keju.encoding.dataset import EncodedRecords
from keju.encoding.encoder import Encoder
from keju.encoding.refusals import Unencodable
from keju.encoding.store_key import tokenizer_digest
from keju.encoding.text_encoder import UNLIMITED
from keju.errors import UserError, renamed_options
from keju.models.configurations import check_model, check_positions, check_rows
from keju.models.loading import DTYPES, load_scalar_model, load_tokenizer
from keju.models.quantization import nf4
from keju.records.reading import iterate_records, read_records
from keju.records.record import TextRecord
from keju.rl.arguments import PPOArguments, PPODataArguments, PPOModelArguments, options_of, same_names
from keju.rl.checkpoint import load_checkpoint, save_model
from keju.rl.experience import RewardShaping
from keju.rl.four_models import Bases, Lora, load_models
from keju.rl.health import HealthMonitor
from keju.rl.joint import reward_alone
from keju.rl.policy_evaluation import evaluate_policy
from keju.rl.ppo_trainer import PPOTrainer
from keju.rl.prompts import read_prompts
from keju.rl.rewards import AdaptiveKLController, FixedKLController, RunningMoments
from keju.rl.rollout import Sampler
from keju.rl.samples import print_samples
from keju.rl.scoring import Reader
from keju.rl.training_loop import TrainingLoop
from keju.rl.translation import Translation, differences, reads_alike
from keju.rl.vllm_rollout import VllmSampler
from keju.stages.rlhf import STAGE
from keju.training.arguments import parse_arguments
from keju.training.engines import cut_up, read_deepspeed_config, zero_stage
from keju.training.launch import run_stage
from keju.training.op_builds import survive_killed_builds
from keju.training.plots import plot_loss
from keju.training.processes import is_main_process, num_launched, start_deepspeed, wait_for_all
from keju.training.progress import describe, warn_of_warmup
from keju.training.stage import inspect, open_run, start_of
from keju.training.starts import check_adapters, merged_start, name_start, remove_start
from keju.training.tree_guard import verify_trees
from keju.training.tree_reading import read_trees
from keju.trees.lazy_trees import RootTokens


@renamed_options(tokenizer_name="model_name_or_path", max_length="max_prompt_length")
def main() -> None:
    models, data, ppo = parse_arguments(PPOModelArguments, PPODataArguments, PPOArguments, description=__doc__)
    check_adapters(models.adapters, models.model_name_or_path)
    folder = open_run(STAGE.name, models, data, ppo)
    set_seed(ppo.seed)
    start_processes(ppo)
    tokenizer = load_tokenizer(models.model_name_or_path, chat_template=models.chat_template)
    roles = [
        ("actor", models.model_name_or_path, models.base_model),
        ("reward", models.reward_model_path, models.reward_base_model),
        ("critic", models.critic_model_path, models.critic_base_model),
        ("judge", models.judge_model_path, models.judge_base_model),
    ]
    roles = [(role, path, base) for role, path, base in roles if path]
    for role, path, base in roles:
        with renamed_options(**options_of(role)):
            check_model(path, base=base)
    check_rows(models.model_name_or_path, data.max_prompt_length + ppo.max_new_tokens, base=models.base_model)
    paths = ("reward_model_path", "critic_model_path", "judge_model_path")
    folder.identify(tokenizer_name=tokenizer_digest(tokenizer), **start_of(ppo.deepspeed, models, *paths))
    records, held_out, ptx, ranked = read_data(data, ppo, tokenizer)
    files = {"train_filename": records, "ptx_filename": ptx, "ranked_filename": ranked}
    folder.identify(**{flag: encoded.digest for flag, encoded in files.items()})
    prompts = RootTokens(records.trees)
    longest = max(map(len, [*prompts, *held_out])) + ppo.max_new_tokens
    for role, path, base in roles:
        with renamed_options(**options_of(role)):
            if role == "actor" or reads_alike(tokenizer, load_tokenizer(path)):
                check_positions(path, longest, what=f"prompts and --max_new_tokens {ppo.max_new_tokens}", base=base)
    is_merged = models.adapters == "merge"
    if is_merged:
        start = merged_start(
            folder, models.model_name_or_path, base=models.base_model, dtype=models.dtype, tokenizer=tokenizer
        )
        models = replace(models, model_name_or_path=str(start), base_model=None, adapters=None)
    trainer = build_trainer(models, data, ppo, tokenizer, records, ptx, ranked)
    if is_merged and (models.share_base or ppo.rollout == "vllm"):
        name_start(folder, trainer.actor, trainer.critic)
    else:
        remove_start(folder)
    inspect(records, tokenizer, trainer.actor, form=STAGE.form)
    verify_models(trainer)
    before = evaluate(trainer, held_out, ppo, tokenizer, "before") if held_out else {}
    if folder.checkpoint:
        load_checkpoint(trainer, folder.checkpoint, folder.made_with)

    saves = {} if ppo.save_strategy == "steps" else {"save_steps": 0}
    monitor = HealthMonitor(ppo.alarm_window, max_kl=ppo.alarm_kl)
    loop = TrainingLoop(trainer, tokenizer, folder, monitor, **same_names(ppo, TrainingLoop) | saves)
    loop.run()
    # Before the evaluation, in which a kill would cost the training
    save_model(trainer.actor, tokenizer, folder.path)
    save_model(trainer.critic, tokenizer, folder.path / "critic")
    if trainer.average is not None:
        save_model(trainer.actor, tokenizer, folder.path / "ema", trainer.average.state_dict(trainer.actor))
    if trainer.is_joint:
        with reward_alone(trainer.reward_model) as state:
            save_model(trainer.reward_model, tokenizer, folder.path / "reward", state)
        # Before and after are read by the same eyes: the reward model as it was.
        trainer.reward_model = load_reader("reward", models, data, tokenizer).model
    after = evaluate(trainer, held_out, ppo, tokenizer, "after") if held_out else {}
    if folder.is_main:
        plot_loss(folder.metrics_path, folder.path / "loss.png", title="Policy loss")
    figures = {"num_prompts": len(prompts), "num_alarms": len(loop.alarms)}
    if held_out:
        figures |= {"reward_before": before["reward"], "reward_after": after["reward"], "kl": after["kl"]}
        figures |= {"evaluation_before": before, "evaluation_after": after}
    folder.finish(**figures)


def verify_models(trainer: PPOTrainer) -> None:
    """Raises UserError unless all models compute token trees as they compute single rows."""
    roles = {"actor": "actor", "reference": "actor", "critic": "critic", "reward_model": "reward"}
    models = {id(model): (model, role) for name, role in roles.items() if (model := getattr(trainer, name)) is not None}
    for model, role in models.values():
        trained = any(parameter.requires_grad for parameter in model.parameters())
        with renamed_options(**options_of(role)):
            verify_trees(trainer.passes(model), gradients=trained)


def start_processes(ppo: PPOArguments) -> None:
    """Raises UserError for several processes without what they need."""
    count = num_launched()
    if count > 1 and ppo.deepspeed is None:
        raise UserError(f"--deepspeed: {count} processes train together under DeepSpeed; give a configuration")
    if count > 1 and ppo.rollout == "vllm":
        raise UserError("--rollout vllm runs in one process; leave it out with several GPUs")
    if ppo.deepspeed is None:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    survive_killed_builds()
    start_deepspeed()
    wait_for_all()  # the first process has prepared the run folder


def read_data(data: PPODataArguments, ppo: PPOArguments, tokenizer: PreTrainedTokenizerBase):
    """-> prompts to learn from, held-out prompts (token ids), ptx records, ranked records (none: empty)."""
    prompts = read_prompts(data, tokenizer, data.train_filename, max_samples=data.max_train_samples)
    held_out = []
    if data.eval_filename:
        others = read_prompts(
            data, tokenizer, data.eval_filename, option="eval_filename", max_samples=data.max_eval_samples
        )
        held_out = RootTokens(others.trees)
    ptx = ranked = EncodedRecords()
    if data.ptx_filename:
        longest = min(data.token_budget, data.max_prompt_length + ppo.max_new_tokens)
        encoder = Encoder(tokenizer, longest, chats=data.chat_settings())
        path = data.path(data.ptx_filename)
        is_text = isinstance(next(iterate_records(path, on_bad_line=data.on_bad_line), None), TextRecord)
        form = "text" if is_text else "sft"
        ptx = read_trees(data, data.ptx_filename, encoder, form, option="ptx_filename", max_samples=None)
    if ppo.enable_joint_optimization:
        encoder = Encoder(tokenizer, data.token_budget, chats=data.chat_settings())
        ranked = read_trees(
            data, data.ranked_filename, encoder, "ranked", option="ranked_filename", max_samples=data.max_train_samples
        )
    return prompts, held_out, ptx, ranked


def reader_settings(
    role: str, models: PPOModelArguments, data: PPODataArguments, tokenizer: PreTrainedTokenizerBase
) -> tuple[Translation | None, PreTrainedTokenizerBase]:
    """How a reward model reads what the actor writes (None: the very ids), and its tokenizer."""
    path = getattr(models, f"{role}_model_path")
    with renamed_options(**options_of(role)):
        own = load_tokenizer(path)
    others = differences(tokenizer, own)
    if not others:
        return None, own
    print(f"{path}: another tokenizer than the actor's ({', '.join(others)}); responses are rendered again as its text")
    encoder = Encoder(tokenizer, UNLIMITED, chats=data.chat_settings())
    records = {}
    for name in filter(None, (data.train_filename, data.eval_filename)):
        for record in read_records(data.path(name), on_bad_line=data.on_bad_line):
            try:
                records[tuple(encoder.record_prompt_ids(record))] = record
            except Unencodable:  # read_data has counted it
                if data.on_bad_line == "error":
                    raise
    return Translation(tokenizer, Encoder(own, UNLIMITED), records), own


def load_reader(
    role: str, models: PPOModelArguments, data: PPODataArguments, tokenizer: PreTrainedTokenizerBase
) -> Reader:
    path, base = getattr(models, f"{role}_model_path"), getattr(models, f"{role}_base_model")
    translation, own = reader_settings(role, models, data, tokenizer)
    with renamed_options(**options_of(role)):
        model = load_scalar_model(path, dtype=models.dtype, tokenizer=own, require_head=True, base=base)
    return Reader(model.to(home_of(models.offload_reward, models)), translation)


def home_of(offloaded: bool, models: PPOModelArguments) -> str:
    """Where a model stays between its passes."""
    return "cuda" if torch.cuda.is_available() and not models.use_cpu and not offloaded else "cpu"


def build_trainer(
    models: PPOModelArguments,
    data: PPODataArguments,
    ppo: PPOArguments,
    tokenizer: PreTrainedTokenizerBase,
    records: EncodedRecords,
    ptx: EncodedRecords,
    ranked: EncodedRecords,
) -> PPOTrainer:
    translation, reward_tokenizer = reader_settings("reward", models, data, tokenizer)
    deepspeed = read_deepspeed_config(ppo.deepspeed, bf16=models.bf16) if ppo.deepspeed else None
    offloaded = {
        "reference": models.offload_reference,
        "reward_model": models.offload_reward and not ppo.enable_joint_optimization,
    }

    def place(role: str, model: PreTrainedModel) -> None:
        if deepspeed is not None and zero_stage(deepspeed) == 3:
            cut_up(model, deepspeed)
        else:
            model.to(home_of(offloaded.get(role, False), models))

    four = load_models(
        models.model_name_or_path,
        models.reward_model_path,
        models.critic_model_path,
        tokenizer=tokenizer,
        reward_tokenizer=reward_tokenizer if translation else None,
        dtype=models.dtype,
        joint=ppo.enable_joint_optimization,
        shared_base=adapters_of(models),
        quantization=nf4(DTYPES["bfloat16" if models.bf16 else models.dtype]) if models.load_in_4bit else None,
        bases=Bases(models.base_model, models.reward_base_model, models.critic_base_model),
        place=place,
    )
    freezing = models.freezing()
    for model, what in {
        id(four.actor): (four.actor, "the actor"),
        id(four.critic): (four.critic, "the critic"),
    }.values():
        freezing.apply(model, what=what)
    max_steps = ppo.max_steps
    if max_steps <= 0:
        max_steps = max(1, math.ceil(ppo.num_train_epochs * len(records) / ppo.rollout_batch_size))
    num_updates = max_steps * ppo.ppo_epochs * ppo.num_mini_batches
    warmup_steps = ppo.warmup_steps if ppo.warmup_steps >= 1 else ppo.warmup_steps * num_updates
    if is_main_process():
        warn_of_warmup(warmup_steps, num_updates)
    kl_controller = FixedKLController(ppo.kl_coef)
    if ppo.kl_target is not None:
        kl_controller = AdaptiveKLController(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
    return PPOTrainer(
        **four._asdict(),
        translation=translation,
        judge=load_reader("judge", models, data, tokenizer) if models.judge_model_path else None,
        prompts=RootTokens(records.trees),
        where=records.where,
        ptx_trees=ptx.trees,
        ranked_trees=ranked.trees,
        sampler=make_sampler(models, ppo, tokenizer),
        shaping=RewardShaping(
            kl_controller=kl_controller,
            moments=RunningMoments() if ppo.normalize_reward else None,
            **same_names(ppo, RewardShaping) | {"clip_reward": ppo.clip_reward or None},
        ),
        token_budget=data.token_budget,
        bf16=models.bf16,
        activation_checkpointing=models.activation_checkpointing,
        loraplus_lr_ratio=models.loraplus_lr_ratio if models.share_base else 1.0,
        **same_names(ppo, PPOTrainer)
        | {"max_steps": max_steps, "warmup_steps": int(warmup_steps), "deepspeed": deepspeed},
    )


def adapters_of(models: PPOModelArguments) -> Lora | None:
    if not models.share_base:
        return None
    return Lora(
        models.lora_r,
        models.lora_alpha,
        models.lora_target_modules,
        use_rslora=models.use_rslora,
        use_dora=models.use_dora,
        init_lora_weights=models.init_lora_weights,
    )


def make_sampler(models: PPOModelArguments, ppo: PPOArguments, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    settings = same_names(ppo, Sampler) | {"batch_size": ppo.generation_batch_size}
    if ppo.rollout == "keju":
        return Sampler(tokenizer, **settings)
    if models.load_in_4bit:
        raise UserError("--rollout vllm: the weights that vLLM takes over must be whole; leave out --load_in_4bit")
    return VllmSampler(tokenizer, folder=models.model_name_or_path, gpu_memory=ppo.vllm_gpu_memory, **settings)


def evaluate(
    trainer: PPOTrainer, prompts: Sequence[list[int]], ppo: PPOArguments, tokenizer: PreTrainedTokenizerBase, when: str
) -> dict[str, float]:
    """Held-out reward and KL, with the same seed of sampling before and after; prints two samples."""
    scored, figures = evaluate_policy(trainer, prompts, seed=ppo.seed)
    if is_main_process():
        print(f"held-out prompts, {when}: {describe(figures)}")
        print_samples(scored, tokenizer, count=2)
    return figures


if __name__ == "__main__":
    run_stage(main)
