"""The trainer: equal results however a global batch is split, saving, resuming, refusing NaN."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import build_llama, build_scalar_model
from transformers import AutoModelForCausalLM, TrainingArguments

from keju.training.crash import NonFiniteLoss
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.objectives.reward import RewardObjective
from keju.training.sampler import TreeBatchSampler
from keju.training.tree_trainer import TreeTrainer
from keju.trees.segment import Segment


def documents(count: int = 8, seed: int = 0) -> list[Segment]:
    """Prompts and answers of very different lengths: an average of averages would show."""
    rng = random.Random(seed)
    return [
        Segment(
            [1] + [rng.randrange(7, 97) for _ in range(rng.randrange(1, 9))],
            branches=[Segment([rng.randrange(7, 97) for _ in range(1 + number * 3)] + [2], trained=True)],
        )
        for number in range(count)
    ]


def ranked(count: int = 8) -> list[Segment]:
    rng = random.Random(1)

    def answer(score):
        return Segment([rng.randrange(7, 97) for _ in range(rng.randrange(1, 7))], True, values={"score": score})

    # 1, 3 or 6 pairs a prompt
    return [
        Segment([1, number + 7], branches=[answer(float(k)) for k in range(2 + number % 3)]) for number in range(count)
    ]


def settings(folder, **overrides) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        **overrides,
    }
    return TrainingArguments(**values)


def train(folder, trees, *, objective=None, model=None, budget=4096, resume=None, **overrides):
    model = model if model is not None else build_llama()
    objective = objective or LanguageModelObjective()
    trainer = TreeTrainer(model, objective, settings(folder, **overrides), trees, token_budget=budget, eval_trees=trees)
    trainer.train(resume_from_checkpoint=resume)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, {name: value.clone() for name, value in model.state_dict().items()}, trainer


@pytest.mark.parametrize("batch_size, accumulation", [(1, 8), (2, 4), (4, 2)])
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_accumulation_gives_the_loss_and_weights_of_one_batch(tmp_path, kind, batch_size, accumulation):
    trees, objective = (documents(), None) if kind == "sft" else (ranked(), RewardObjective())

    def model():
        return build_llama() if kind == "sft" else build_scalar_model(build_llama())

    whole_losses, whole, _ = train(tmp_path / "a", trees, objective=objective, model=model())
    split_losses, split, _ = train(
        tmp_path / "b",
        trees,
        objective=objective,
        model=model(),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )
    assert split_losses == pytest.approx(whole_losses, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_small_token_budget_splits_a_batch_without_changing_it(tmp_path):
    """Packs of at most 40 tokens, as many as accumulation takes: the same step."""
    trees = documents()
    packs = len(TreeBatchSampler([tree.num_tokens for tree in trees], 40))
    assert packs > 2
    whole, _, _ = train(tmp_path / "a", trees, max_steps=1)
    split, _, _ = train(tmp_path / "b", trees, max_steps=1, budget=40, gradient_accumulation_steps=packs)
    assert split == pytest.approx(whole, rel=1e-5)


def test_activation_checkpointing_changes_nothing_but_memory(tmp_path):
    plain, whole, _ = train(tmp_path / "a", documents())
    losses, weights, trainer = train(tmp_path / "b", documents(), activation_checkpointing=True)
    assert trainer.model.model.is_gradient_checkpointing
    assert losses == pytest.approx(plain, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(weights[name], whole[name], rtol=1e-5, atol=1e-6, msg=name)


def test_logged_loss_is_the_mean_over_trained_tokens(tmp_path):
    trees = documents()
    model = build_llama()
    expected, count = 0.0, 0
    with torch.no_grad():
        for tree in trees:
            ids = torch.tensor([[*tree.tokens, *tree.branches[0].tokens]])
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            expected -= logprobs[len(tree.tokens) - 1 :].sum().item()
            count += len(tree.branches[0].tokens)
    losses, _, trainer = train(tmp_path, trees, model=model, max_steps=1, learning_rate=0.0)
    assert losses[0] == pytest.approx(expected / count, rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected / count, rel=1e-5)


def test_checkpoint_loads_without_the_wrapper(tmp_path):
    _, weights, trainer = train(tmp_path, documents())
    trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert not list(tmp_path.rglob("training_args.bin")), "a pickle was left in the folder"


def test_resumed_run_equals_an_unbroken_one(tmp_path):
    trees = documents(12)
    options = {"per_device_train_batch_size": 3, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 2}
    _, unbroken, _ = train(tmp_path / "a", trees, max_steps=7, **options)
    train(tmp_path / "b", trees, max_steps=7, **options)  # the same run; what came after step 4 is forgotten:
    _, resumed, trainer = train(
        tmp_path / "b", trees, max_steps=7, resume=str(tmp_path / "b" / "checkpoint-4"), **options
    )
    assert trainer.state.global_step == 7
    for name in unbroken:
        assert torch.equal(resumed[name], unbroken[name]), name


def test_nan_stops_the_run_and_names_the_records(tmp_path):
    model = build_llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[50] = float("nan")
    trees = [Segment([1, 10, 11], True), Segment([1, 50, 51], True), Segment([1, 20, 21], True)]
    where = ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]
    trainer = TreeTrainer(
        model,
        LanguageModelObjective(),
        settings(tmp_path, per_device_train_batch_size=1, max_steps=3),
        trees,
        token_budget=64,
        where=where,
    )
    with pytest.raises(NonFiniteLoss, match="data.jsonl:2"):
        trainer.train()


def test_sampler_gives_every_tree_once_an_epoch_to_all_processes_together():
    lengths = [random.Random(0).randrange(1, 60) for _ in range(101)]
    for processes in (1, 2, 3):
        orders = []
        for epoch in (0, 1):
            shares = []
            for index in range(processes):
                sampler = TreeBatchSampler(lengths, 128, seed=5, num_processes=processes, process_index=index)
                sampler.set_epoch(epoch)
                shares.append(list(sampler))
                assert len(shares[-1]) == len(sampler)
            flat = [member for share in shares for members in share for member in members]
            assert sorted(flat) == list(range(101))
            assert all(sum(lengths[m] for m in members) <= 128 for share in shares for members in share)
            orders.append(flat)
        assert orders[0] != orders[1]
