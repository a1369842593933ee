"""Each preference loss against numbers by hand, against TRL on the same log-probabilities, and at the extremes."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

from keju.losses.kto import desirable_answers, kto_loss, reference_point
from keju.losses.preference_mix import PreferenceMix, loss_names
from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
OF_TRL_DPO = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
LENGTHS = ((3, 1, 6, 2), (5, 4, 2, 2))  # of winners and losers


def tokens(seed: int, requires_grad: bool = False) -> list[list[torch.Tensor]]:
    """Log-probabilities of each token of each winner and loser, float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [[-torch.rand(n, generator=generator, dtype=torch.float64) * 3 for n in side] for side in LENGTHS]
    return [[row.requires_grad_(requires_grad) for row in side] for side in drawn]


def pairs_of(policy, reference) -> PreferencePairs:
    sides = []
    for own, ref in zip(policy, reference, strict=True):
        length = torch.tensor([len(row) for row in own], dtype=torch.float64)
        sides.append(Side(torch.stack([r.sum() for r in own]), torch.stack([r.sum() for r in ref]), length))
    return PreferencePairs(*sides)


def padded(sides) -> torch.Tensor:
    """[2 B, T]: winners, then losers; zeros behind."""
    return torch.nn.utils.rnn.pad_sequence([row for side in sides for row in side], batch_first=True)


def outputs(log_probs) -> SimpleNamespace:
    """What TRL takes of a model with its fused head."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


class Bare(torch.nn.Module):
    """All that TRL asks of its own model, whose forward is not called."""

    is_gradient_checkpointing = False


def accelerator() -> SimpleNamespace:
    same = lambda x: x  # noqa: E731
    return SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)


def trl_dpo(names, policy, reference, *, weights=None, ld_alpha=None, beta=0.3, smoothing=0.0) -> torch.Tensor:
    """The loss that TRL's DPOTrainer computes from these log-probabilities of tokens."""
    log_probs = padded(policy)
    mask = padded([[torch.ones_like(row) for row in side] for side in policy]).long()
    completion = torch.nn.functional.pad(mask, (1, 0))  # a prompt of one token
    trainer = SimpleNamespace(
        model=Bare(),
        ref_model=lambda **inputs: outputs(padded(reference)),
        accelerator=accelerator(),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        loss_types=list(names),
        loss_weights=weights or [1.0] * len(names),
        beta=beta,
        label_smoothing=smoothing,
        ld_alpha=ld_alpha,
        f_divergence_type="reverse_kl",
        precompute_ref_logps=False,
        aux_loss_enabled=False,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"input_ids": completion, "attention_mask": torch.ones_like(completion), "completion_mask": completion}
    return DPOTrainer._compute_loss(trainer, lambda **inputs: outputs(log_probs), inputs, False)


@pytest.mark.parametrize("name", OF_TRL_DPO)
def test_value_and_gradient_are_those_of_trl(name):
    smoothing = 0.1 if name in SMOOTHED else 0.0
    policy, reference = tokens(0, requires_grad=True), tokens(1)
    ours = PreferenceMix([name], None, LossSettings(0.3, smoothing))(pairs_of(policy, reference)).mean()
    theirs = trl_dpo([name], policy, reference, smoothing=smoothing)
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-6, atol=1e-7)
    leaves = [row for side in policy for row in side]
    gradients = (torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (ours, theirs))
    for leaf, mine, their in zip(leaves, *gradients, strict=True):
        mine, their = (torch.zeros_like(leaf) if g is None else g for g in (mine, their))
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-7)


def test_several_losses_are_weighted():
    policy, reference = tokens(0), tokens(1)
    names, weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]  # MPO
    ours = PreferenceMix(names, weights, LossSettings(0.3))(pairs_of(policy, reference)).mean()
    torch.testing.assert_close(ours, trl_dpo(names, policy, reference, weights=weights).double())


@pytest.mark.parametrize("name", ["simpo", "cpo"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cpo_and_simpo_are_those_of_trl(name, smoothing):
    policy = tokens(0)
    pairs = pairs_of(policy, tokens(1))
    settings = LossSettings(2.0, smoothing, simpo_gamma=0.7, cpo_alpha=0.4)
    trainer = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=smoothing, accelerator=accelerator(),
        loss_type="simpo" if name == "simpo" else "sigmoid",
    )  # fmt: skip
    sides = [side.logprob / side.length if name == "simpo" else side.logprob for side in pairs]
    theirs = CPOTrainer.cpo_loss(trainer, *sides)[0]
    if name == "cpo":  # its trainer adds the mean over the winners' tokens
        theirs = theirs + 0.4 * -torch.cat(policy[0]).mean()
    torch.testing.assert_close(PreferenceMix([name], None, settings)(pairs).mean(), theirs.mean())


def test_orpo_is_that_of_trl_but_for_the_prompt():
    policy = tokens(0)
    pairs = pairs_of(policy, tokens(1))
    trainer = SimpleNamespace(beta=0.3, accelerator=accelerator())
    theirs = ORPOTrainer.odds_ratio_loss(trainer, *(side.logprob / side.length for side in pairs))[0]
    expected = -torch.cat(policy[0]).mean() - theirs  # TRL subtracts it from the language-model loss
    ours = PreferenceMix(["orpo"], None, LossSettings(0.3))(pairs)
    torch.testing.assert_close(ours.mean(), expected.mean().to(ours.dtype), rtol=1e-5, atol=1e-6)


def test_kto_is_that_of_trl():
    policy, reference = tokens(0), tokens(1)
    desirable = torch.tensor([True, True, True, True, False, False, False, False])
    mismatched = torch.tensor([0.4, -0.1, 0.9])
    completion = torch.nn.functional.pad(
        padded([[torch.ones_like(row) for row in side] for side in policy]).long(), (1, 0)
    )
    trainer = SimpleNamespace(
        model=Bare(),
        ref_model=lambda **inputs: outputs(padded(reference)),
        accelerator=accelerator(),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        beta=0.3, loss_type="kto", calculate_KL=True, precompute_ref_logps=False, aux_loss_enabled=False,
        desirable_weight=1.2, undesirable_weight=0.7,
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    trainer._compute_kl_logps = lambda model, batch: mismatched if model is not trainer.ref_model else mismatched * 0
    inputs = {
        "input_ids": completion, "attention_mask": torch.ones_like(completion), "completion_mask": completion,
        "label": desirable,
    }  # fmt: skip
    theirs = KTOTrainer._compute_loss(trainer, lambda **inputs: outputs(padded(policy)), inputs, False)
    pairs = pairs_of(policy, reference)
    log_ratio = torch.cat([pairs.winner.log_ratio, pairs.loser.log_ratio])
    ours = kto_loss(
        log_ratio, desirable, reference_point(mismatched), beta=0.3, desirable_weight=1.2, undesirable_weight=0.7
    )
    assert reference_point(mismatched).item() == pytest.approx(0.4)
    torch.testing.assert_close(ours.mean(), theirs.to(ours.dtype))


def test_the_reference_point_is_never_negative_and_has_no_gradient():
    mismatched = torch.tensor([-1.0, 0.2], requires_grad=True)
    assert reference_point(mismatched).item() == 0.0 and not reference_point(mismatched).requires_grad
    assert reference_point(torch.zeros(0)).item() == 0.0


def test_answers_above_their_prompts_mean_are_desirable():
    scores = torch.tensor([math.nan, 3.0, 1.0, 2.0, math.nan, 5.0, 5.0])
    good, bad = desirable_answers(scores, torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    assert good.tolist() == [False, True, False, False, False, False, False]
    assert bad.tolist() == [False, False, True, False, False, False, False]


def one(winner: float, loser: float) -> PreferencePairs:
    """A pair without reference; the winner has 2 tokens, the loser 4."""
    sides = ((winner, 2.0), (loser, 4.0))
    return PreferencePairs(*(Side(torch.tensor([x]), torch.zeros(1), torch.tensor([n])) for x, n in sides))


def test_some_values_by_hand():
    """winner log-ratio -2, loser -6; beta 0.5: margin 2, rewards -1 and -3."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    odds = lambda x: x - math.log(1 - math.exp(x))  # noqa: E731
    expected = {
        "sigmoid": -math.log(sigmoid(2)),
        "hinge": 0.0,
        "ipo": (-1 + 1.5 - 1) ** 2,
        "nca_pair": -math.log(sigmoid(-1)) - 0.5 * math.log(sigmoid(1)) - 0.5 * math.log(sigmoid(3)),
        "bco_pair": -math.log(sigmoid(-1)) - math.log(sigmoid(3)),
        "sppo_hard": (-2 - 1) ** 2 + (-6 + 1) ** 2,
        "apo_zero": 1 - sigmoid(-1) + sigmoid(-3),
        "apo_down": sigmoid(-1) + 1 - sigmoid(2),
        "sigmoid_norm": -math.log(sigmoid(0.5 * (-1 + 1.5))),
        "simpo": -math.log(sigmoid(0.5 * (-1 + 1.5) - 0.5)),
        "cpo": -math.log(sigmoid(2)) + 1.0,
        "sft": 1.0,
        "orpo": 1.0 - 0.5 * math.log(sigmoid(odds(-1) - odds(-1.5))),
    }
    for name, value in expected.items():
        found = PreferenceMix([name], None, LossSettings(0.5))(one(-2.0, -6.0)).item()
        assert found == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("name", loss_names())
@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_losses_are_finite_at_the_extremes(name, size):
    """Log-ratios of ten thousand either way: neither value nor gradient is NaN or infinite."""
    smoothing = 0.1 if name in SMOOTHED else 0.0
    winner = torch.tensor([-2e4 + size], requires_grad=True)
    loser = torch.tensor([-2e4 - size], requires_grad=True)
    length = torch.tensor([7.0])
    reference = torch.tensor([-2e4])
    pairs = PreferencePairs(Side(winner, reference, length), Side(loser, reference, length))
    loss = PreferenceMix([name], None, LossSettings(0.1, smoothing))(pairs)
    loss.sum().backward()
    for tensor in (loss, winner.grad, loser.grad):
        assert tensor is None or torch.isfinite(tensor).all()


@pytest.mark.parametrize("name", [name for name in loss_names() if name != "apo_down"])
def test_a_step_down_the_gradient_helps_the_winner(name):
    smoothing = 0.1 if name in SMOOTHED else 0.0
    policy = tokens(2, requires_grad=True)
    PreferenceMix([name], None, LossSettings(0.3, smoothing))(pairs_of(policy, tokens(3))).sum().backward()
    gain = [-sum(row.grad.sum() for row in side if row.grad is not None) for side in policy]
    assert gain[0] > gain[1]


@pytest.mark.parametrize(
    ("names", "weights", "settings", "said"),
    [
        (["nope"], None, {}, "^loss_type: nope: choose from aot"),
        ([], None, {}, "^loss_type: at least"),
        (["sigmoid"], [1.0, 2.0], {}, "^loss_weights: 2 for 1"),
        (["ipo"], None, {"label_smoothing": 0.1}, "^label_smoothing: has no effect with --loss_type ipo"),
        (["robust"], None, {"label_smoothing": 0.5}, "^label_smoothing: .*got 0.5"),
        (["exo_pair"], None, {}, "needs --label_smoothing"),
        (["sigmoid"], None, {"beta": 0.0}, "^beta: .*got 0.0"),
    ],
)
def test_mistakes_name_the_option(names, weights, settings, said):
    with pytest.raises(ValueError, match=said):
        PreferenceMix(names, weights, LossSettings(**settings))


def test_which_losses_need_a_reference():
    settings = {name: LossSettings(0.1, 0.1 if name in SMOOTHED else 0.0) for name in loss_names()}
    free = {name for name in loss_names() if not PreferenceMix([name], None, settings[name]).needs_reference}
    assert free == {"sft", "simpo", "cpo", "orpo"}
    assert PreferenceMix(["simpo", "sigmoid"], None, LossSettings()).needs_reference
