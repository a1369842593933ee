"""Losses and gradients: trees = padded rows = one row at a time, for every objective and family."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from tiny_models import build_scalar_model, opening, row_inputs

from keju.losses.preference_pairs import LossSettings
from keju.models.backbone import backbone_of, tree_logprobs, tree_token_scores, unwrapped
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.objectives.preference import PreferenceObjective, segment_sums
from keju.training.objectives.reward import RewardObjective
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment


def ranked_trees(model, seed: int = 0) -> list[Segment]:
    """Prompts of odd lengths with 1 to 4 answers, some sharing first tokens, some of one token."""
    rng = random.Random(seed)
    trees = []
    for prompt_length, lengths in [(7, (3, 5, 1, 4)), (1, (6, 2)), (13, (1,)), (4, (2, 2, 9))]:
        prompt = [1] + [rng.randrange(7, 97) for _ in range(prompt_length - 1)] + opening(model)
        answers = [[rng.randrange(7, 97) for _ in range(length - 1)] + [2] for length in lengths]
        if len(answers) > 2:
            answers[1][0] = answers[2][0]
        branches = [
            Segment(ids, trained=True, values={"score": float(score % 3), "ref_logprob": -3.0 - score})
            for score, ids in enumerate(answers)
        ]
        trees.append(Segment(prompt, branches=branches))
    return trees


def rows_of(trees):
    """(prompt, answer, segment) of every answer, in the order of a packed batch."""
    return [(list(tree.tokens), list(branch.tokens), branch) for tree in trees for branch in tree.branches]


def row_outputs(model, trees, side: str | None):
    """Last hidden states of prompt + answer for each answer: padded together on `side`, or one row at a time."""
    backbone = backbone_of(model)
    rows = [prompt + answer for prompt, answer, _ in rows_of(trees)]
    if side is None:
        return [backbone(**row_inputs(model, [row])).last_hidden_state[0] for row in rows]
    inputs = row_inputs(model, rows, side, extra=2)
    hidden = backbone(**inputs).last_hidden_state
    return [hidden[number, mask.bool()] for number, mask in enumerate(inputs["attention_mask"])]


def row_logprobs(model, trees, side):
    """One tensor an answer: the log-probabilities of its tokens."""
    result = []
    for hidden, (prompt, answer, _) in zip(row_outputs(model, trees, side), rows_of(trees), strict=True):
        logprobs = logits_of(model, hidden[len(prompt) - 1 : -1]).log_softmax(-1)
        result.append(logprobs.gather(-1, torch.tensor(answer)[:, None])[:, 0])
    return result


def logits_of(model, hidden):
    head = unwrapped(model).get_output_embeddings()
    return torch.nn.functional.linear(hidden, head.weight) if isinstance(head, torch.nn.Embedding) else head(hidden)


def answer_pairs(trees):
    """(better, worse) row numbers: every ordered pair of one prompt, written as plainly as can be."""
    pairs, first = [], 0
    for tree in trees:
        scores = [branch.values["score"] for branch in tree.branches]
        pairs += [(first + i, first + j) for i, a in enumerate(scores) for j, b in enumerate(scores) if a > b]
        first += len(scores)
    return pairs


def sft_reference(model, trees, side):
    return -torch.cat(row_logprobs(model, trees, side)).sum()


def dpo_reference(loss_type, beta=0.3, smoothing=0.0, reference_free=False):
    def loss(model, trees, side):
        branches = [branch for *_, branch in rows_of(trees)]
        total = 0
        ratios = []
        for logprobs, branch in zip(row_logprobs(model, trees, side), branches, strict=True):
            ratio = logprobs.sum() - (0 if reference_free else branch.values["ref_logprob"])
            ratios.append(ratio / len(branch.tokens) if loss_type == "ipo" else ratio)
        for better, worse in answer_pairs(trees):
            d = ratios[better] - ratios[worse]
            if loss_type == "sigmoid":
                total = total - (1 - smoothing) * F.logsigmoid(beta * d) - smoothing * F.logsigmoid(-beta * d)
            elif loss_type == "ipo":
                total = total + (d - 1 / (2 * beta)) ** 2
            else:
                total = total + torch.relu(1 - beta * d)
        return total

    return loss


def reward_reference(loss_type):
    def loss(model, trees, side):
        rows = rows_of(trees)
        values = [
            unwrapped(model).score(hidden)[len(prompt) :, 0]
            for hidden, (prompt, _, _) in zip(row_outputs(model, trees, side), rows, strict=True)
        ]
        total = 0
        for better, worse in answer_pairs(trees):
            if loss_type == "last":
                total = total - F.logsigmoid(values[better][-1] - values[worse][-1])
                continue
            a, b = rows[better][1], rows[worse][1]
            first = next((t for t, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            span = [
                -F.logsigmoid(values[better][min(t, len(a) - 1)] - values[worse][min(t, len(b) - 1)])
                for t in range(first, max(len(a), len(b)))
            ]
            total = total + torch.stack(span).mean()
        return total

    return loss


CASES = {
    "sft": (LanguageModelObjective(), sft_reference, False),
    "reward last": (RewardObjective("last"), reward_reference("last"), True),
    "reward span": (RewardObjective("span"), reward_reference("span"), True),
    "dpo sigmoid": (PreferenceObjective(LossSettings(0.3)), dpo_reference("sigmoid"), False),
    "dpo smoothed": (PreferenceObjective(LossSettings(0.3, 0.1)), dpo_reference("sigmoid", smoothing=0.1), False),
    "dpo ipo": (PreferenceObjective(LossSettings(0.3), ["ipo"]), dpo_reference("ipo"), False),
    "dpo hinge": (PreferenceObjective(LossSettings(0.3), ["hinge"]), dpo_reference("hinge"), False),
    "dpo reference-free": (
        PreferenceObjective(LossSettings(0.3), reference_free=True),
        dpo_reference("sigmoid", reference_free=True),
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", [None, "left", "right"], ids=["one by one", "left-padded", "right-padded"])
def test_tree_loss_and_gradients_equal_rows(causal_lm, case, side):
    objective, reference, scalar = CASES[case]
    model = build_scalar_model(causal_lm) if scalar else causal_lm
    other = copy.deepcopy(model)
    trees = ranked_trees(causal_lm)

    loss = objective(model, PackedBatch.from_trees(trees)).loss_sum
    expected = reference(other, trees, side)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)

    loss.backward()
    expected.backward()
    checked = 0
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None or not ours.grad.any(), name
            continue
        scale = theirs.grad.abs().max().clamp(min=1)
        torch.testing.assert_close(
            ours.grad / scale, theirs.grad / scale, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
        checked += bool(theirs.grad.any())
    assert checked > 10


def test_ppo_scoring_equals_rows(causal_lm):
    """Log-probability of every response token, and the value before each: what PPO reads from a tree."""
    trees = ranked_trees(causal_lm, 1)
    batch = PackedBatch.from_trees(trees)
    scalar = build_scalar_model(causal_lm)
    with torch.no_grad():
        ours = tree_logprobs(causal_lm, batch, temperature=0.7, with_entropy=True)
        values = tree_token_scores(scalar, batch)[batch.source, 0]
        for side in (None, "left", "right"):
            logprobs, entropy, expected_values = [], [], []
            for hidden, scored, (prompt, answer, _) in zip(
                row_outputs(causal_lm, trees, side), row_outputs(scalar, trees, side), rows_of(trees), strict=True
            ):
                distribution = (logits_of(causal_lm, hidden[len(prompt) - 1 : -1]) / 0.7).log_softmax(-1)
                logprobs.append(distribution.gather(-1, torch.tensor(answer)[:, None])[:, 0])
                entropy.append(-(distribution.exp() * distribution).sum(-1))
                expected_values.append(scalar.score(scored)[len(prompt) - 1 : -1, 0])
            torch.testing.assert_close(ours.logprobs, torch.cat(logprobs), rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(ours.entropy, torch.cat(entropy), rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(values, torch.cat(expected_values), rtol=1e-5, atol=2e-5)


def summed(model, batch):
    return segment_sums(tree_logprobs(model, batch).logprobs, batch)


def test_nothing_of_one_tree_or_branch_reaches_another(causal_lm):
    trees = ranked_trees(causal_lm)
    with torch.no_grad():
        before = summed(causal_lm, PackedBatch.from_trees(trees))
        # other tokens in the second tree, in one branch of the last tree, and another order of trees
        trees[1].tokens = [1, *opening(causal_lm)]
        trees[1].branches[0].tokens = [50, 51, 52, 53, 54, 2]
        trees[3].branches[0].tokens = [60, 2]
        after = summed(causal_lm, PackedBatch.from_trees(trees))
        moved = summed(causal_lm, PackedBatch.from_trees([trees[2], trees[0]]))
    changed = (before - after).abs() > 1e-5
    batch = PackedBatch.from_trees(trees)
    touched = [6, int((batch.segment_tree == 3).nonzero()[1])]
    assert changed.nonzero().flatten().tolist() == touched
    torch.testing.assert_close(moved[2:7], after[:5], rtol=1e-5, atol=1e-5)


def test_gradient_of_one_tree_does_not_touch_the_embeddings_of_another(causal_lm):
    trees = [
        Segment([10, 11, *opening(causal_lm)], branches=[Segment([12, 13], True)]),
        Segment([20, 21, *opening(causal_lm)], branches=[Segment([22, 23], True)]),
    ]
    batch = PackedBatch.from_trees(trees)
    embeddings = causal_lm.get_input_embeddings()
    captured = {}
    handle = embeddings.register_forward_hook(lambda _, __, output: captured.setdefault("x", output))
    logprobs = tree_logprobs(causal_lm, batch).logprobs
    handle.remove()
    (gradient,) = torch.autograd.grad(logprobs[:2].sum(), captured["x"])
    boundary = trees[0].num_tokens
    assert gradient[0, :boundary].abs().sum() > 0
    assert gradient[0, boundary:].abs().max() == 0
