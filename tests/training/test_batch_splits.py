"""The step of every loss is the same, however its batch is split into packs, steps of accumulation and processes."""

from __future__ import annotations

import gc
import os
import random
import socket

import pytest
import torch
import torch.multiprocessing
from tiny_models import build_llama, build_scalar_model
from transformers import TrainingArguments

from keju.losses.preference_mix import loss_names
from keju.losses.preference_pairs import LossSettings
from keju.training.crash import NonFiniteLoss
from keju.training.objectives.kto import KTOObjective, MismatchedAnswers
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.objectives.preference import PreferenceObjective
from keju.training.objectives.reward import RewardObjective
from keju.training.tree_trainer import TreeTrainer
from keju.trees.segment import Segment

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
MIXES = {"mpo": ["sigmoid", "bco_pair", "sft"], "sorted and more": ["aot", "cpo", "orpo"]}
REWARDS = {
    "last": RewardObjective("last", margin_coef=0.3, center_coef=0.1),
    "span": RewardObjective("span", center_coef=0.1),
    "plackett_luce": RewardObjective("plackett_luce"),
}
LOSSES = [*loss_names(), *MIXES, "kto", *REWARDS, "language model", "weighted"]
# Trees a pack, packs a step, tokens a pack: budgets cut packs unevenly, too.
SPLITS = [(8, 1, 4096), (2, 4, 4096), (1, 8, 4096), (8, None, 60)]

OF_TWO = ("aot_unpaired", "orpo", "kto", "span")


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """Trainers collect garbage when they start, which takes a second with all that is imported here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def trees_of(loss: str) -> list[Segment]:
    """Eight prompts with 2 to 4 answers of very different lengths, scored, with a reference; some are marked."""
    rng = random.Random(3)

    def ids(count: int) -> list[int]:
        return [rng.randrange(7, 97) for _ in range(count)]

    def answer(score: float) -> Segment:
        tokens = [*ids(rng.choice((1, 3, 9))), 2]
        more = {"token_values": {"weight": [rng.choice((0.0, 0.5, 2.0)) for _ in tokens]}} if loss == "weighted" else {}
        values = {"score": score, "ref_logprob": -rng.uniform(3, 9) * len(tokens)}
        return Segment(tokens, True, values=values, **more)

    trees = [
        Segment([1, *ids(rng.randint(1, 6))], branches=[answer(float(k)) for k in range(2 + number % 3)])
        for number in range(8)
    ]
    if loss != "kto":
        return trees
    widened = list(MismatchedAnswers(trees, 4096))
    for tree in widened:
        tree.branches[-1].values["ref_logprob"] = -rng.uniform(3, 9) * len(tree.branches[-1].tokens)
    return widened


def objective_of(loss: str):
    if loss in REWARDS:
        return REWARDS[loss]
    if loss == "kto":
        return KTOObjective(0.3, 1.1, 0.9)
    if loss in ("language model", "weighted"):
        return LanguageModelObjective()
    return PreferenceObjective(LossSettings(0.3, 0.1 if loss in SMOOTHED else 0.0), MIXES.get(loss, [loss]))


def first_step(folder, loss: str, trees_a_pack: int, packs: int | None, budget: int):
    """The loss of the first step, that of an evaluation before it, and the gradients (weights lost at a rate of 1)."""
    model = build_llama()
    model = (build_scalar_model(model) if loss in REWARDS else model).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trees, settings = trees_of(loss), settings_of(folder, trees_a_pack, packs or 64)
    trainer = TreeTrainer(model, objective_of(loss), settings, trees, token_budget=budget, eval_trees=trees)
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.train()
    (found,) = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return found, evaluated, {name: before[name] - tensor for name, tensor in model.state_dict().items()}


def settings_of(folder, trees_a_pack: int, packs: int) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        per_device_train_batch_size=trees_a_pack,
        per_device_eval_batch_size=trees_a_pack,
        gradient_accumulation_steps=packs,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        optim="sgd",
        max_grad_norm=0.0,
    )


def assert_same(found, expected) -> None:
    """To within float32, in which norms and logged losses are."""
    assert found[:2] == pytest.approx(expected[:2], rel=2e-6)
    largest = max(gradient.abs().max().item() for gradient in expected[2].values())
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_does_not_depend_on_how_its_batch_is_split(tmp_path, loss):
    whole, *splits = (first_step(tmp_path, loss, *split) for split in SPLITS)
    assert whole[1] == pytest.approx(whole[0], rel=1e-5)
    assert any(gradient.abs().max() > 1e-6 for gradient in whole[2].values())
    for split in splits:
        assert_same(split, whole)


@pytest.mark.parametrize("loss", ["aot", "kto"])
def test_a_pack_that_is_broken_is_named_though_the_others_look_at_it(tmp_path, loss):
    model, trees = build_llama(), trees_of(loss)
    id_of_one = trees[5].branches[-1 if loss == "kto" else 0].tokens[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[id_of_one] = float("nan")
    broken = [number for number, tree in enumerate(trees, 1) if id_of_one in ids_that_are_read(tree)]
    where = [f"data.jsonl:{number}" for number in range(1, 9)]
    settings = settings_of(tmp_path, 1, 8)
    trainer = TreeTrainer(model, objective_of(loss), settings, trees, token_budget=4096, where=where)
    with pytest.raises(NonFiniteLoss) as error:
        trainer.train()
    assert any(f"data.jsonl:{number}" in str(error.value) for number in broken) and len(broken) < 8


def ids_that_are_read(tree: Segment) -> set[int]:
    return {token for segment in tree.preorder() for token in segment.tokens}


def one_of_two(rank: int, folder: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.save({loss: first_step(folder, loss, 2, 2, 4096) for loss in OF_TWO}, f"{folder}/{rank}.pt")


def test_two_processes_take_the_step_of_one(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path), port), nprocs=2)
    expected = {loss: first_step(tmp_path, loss, 8, 1, 4096) for loss in OF_TWO}
    for rank in (0, 1):
        for loss, step in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            assert_same(step, expected[loss])
