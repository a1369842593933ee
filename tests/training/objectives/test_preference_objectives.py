"""Preference and reward objectives over trees against plain rows, one pair after the other."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from exactness import assert_as_exact
from tiny_models import build_llama, build_scalar_model
from trl import RewardTrainer

from keju.losses.preference_mix import PreferenceMix, loss_names
from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side
from keju.training.objectives.kto import KTOObjective, MismatchedAnswers
from keju.training.objectives.preference import PreferenceObjective
from keju.training.objectives.reward import RewardObjective
from keju.training.reference_cache import reference_trees
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

SMOOTHING = {"robust": 0.1, "exo_pair": 0.1}


def trees() -> list[Segment]:
    """Three prompts with 3, 2 and 2 answers of different lengths; in the last the longer one is better."""
    answers = [
        ([1, 5, 6, 7], [([8, 9, 2], 2.0), ([10, 2], 0.0), ([11, 12, 13, 14, 2], 1.0)]),
        ([1, 20], [([21, 22, 2], 0.0), ([23, 2], 1.0)]),
        ([1, 30, 31], [([32, 33, 34, 35, 36, 2], 3.0), ([37, 38, 2], -1.0)]),
    ]
    return [
        Segment(prompt, branches=[Segment(ids, trained=True, values={"score": score}) for ids, score in branches])
        for prompt, branches in answers
    ]


def logprobs(model, prompt, answer) -> torch.Tensor:
    """Of each token of an answer, from a row of its own."""
    ids = torch.tensor([[*prompt, *answer]])
    rows = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return rows[len(prompt) - 1 :]


def sides_of(policy, reference, pairs, alpha) -> PreferencePairs:
    """Every pair by itself, with plain rows."""
    columns = ([], [])
    for prompt, winner, loser in pairs:
        shared = min(len(winner), len(loser))
        for column, answer in zip(columns, (winner, loser), strict=True):
            with torch.no_grad():
                ref = logprobs(reference, prompt, answer)
            own = logprobs(policy, prompt, answer)
            sums = [tokens[:shared].sum() + alpha * tokens[shared:].sum() for tokens in (own, ref)]
            column.append((*sums, torch.tensor(float(len(answer)))))
    return PreferencePairs(*(Side(*map(torch.stack, zip(*column, strict=True))) for column in columns))


def pairs_of(trees):
    for tree in trees:
        ranked = [(branch.values["score"], branch.tokens) for branch in tree.branches]
        for (a, winner), (b, loser) in itertools.permutations(ranked, 2):
            if a > b:
                yield tree.tokens, winner, loser


@pytest.fixture
def models():
    return build_llama(seed=0), build_llama(seed=1)


def gradients(model) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
@pytest.mark.parametrize("name", loss_names())
def test_trees_are_plain_pairs(models, tmp_path, name, ld_alpha):
    policy, reference = models
    settings = LossSettings(0.3, SMOOTHING.get(name, 0.0))
    objective = PreferenceObjective(settings, [name], ld_alpha=ld_alpha)
    ranked = trees()
    if objective.needs_reference:
        by_token = ld_alpha is not None
        (ranked,) = reference_trees(reference, [ranked], token_budget=64, cache_dir=tmp_path, by_token=by_token)
    batch = PackedBatch.from_trees(ranked)
    output = objective(policy, batch)
    output.loss_sum.backward()
    ours = gradients(policy)

    mix = PreferenceMix([name], None, settings)

    def plainly(policy, reference) -> tuple[PreferencePairs, torch.Tensor, list[torch.Tensor]]:
        """Sides, loss and gradients."""
        sides = sides_of(policy, reference, pairs_of(ranked), 1.0 if ld_alpha is None else ld_alpha)
        loss = mix(sides).sum()
        loss.backward()
        return sides, loss.detach(), gradients(policy)

    sides, expected, theirs = plainly(policy, reference)
    _, _, exact = plainly(*(copy.deepcopy(model).double() for model in models))
    torch.testing.assert_close(output.loss_sum.detach(), expected, rtol=1e-5, atol=1e-5)
    assert objective.num_items(batch) == 5
    margin = mix.reward(sides.winner) - mix.reward(sides.loser)
    if "aot" not in name:  # rewards are those of pairs, in whatever order these come
        assert output.metrics["margin"][0].item() == pytest.approx(margin.sum().item(), rel=1e-4, abs=1e-5)
        found = objective.margins(policy, batch)
        torch.testing.assert_close(found.sort().values, margin.sort().values, rtol=1e-4, atol=1e-5)
    assert_as_exact(ours, theirs, exact)


def test_kto_over_trees(models, tmp_path):
    """Labels from the ranks; the reference point from answers to other prompts, computed as rows of their own."""
    policy, reference = models
    widened = MismatchedAnswers(trees(), token_budget=64)
    (widened,) = reference_trees(reference, [widened], token_budget=64, cache_dir=tmp_path)
    batch = PackedBatch.from_trees(widened)
    objective = KTOObjective(0.3, 1.1, 0.9)
    output = objective(policy, batch)
    output.loss_sum.backward()
    ours = gradients(policy)

    def ratio(prompt, answer):
        with torch.no_grad():
            ref = logprobs(reference, prompt, answer).sum()
        return logprobs(policy, prompt, answer).sum() - ref

    plain = trees()
    others = [plain[1].branches[0], plain[2].branches[1], plain[0].branches[2]]  # tree i: answer i mod K of the next
    mismatched = [ratio(tree.tokens, other.tokens) for tree, other in zip(plain, others, strict=True)]
    point = max(torch.zeros(()), torch.stack(mismatched).mean().detach())
    assert output.metrics["kl"][0].item() == pytest.approx(point.item(), rel=1e-4, abs=1e-5)
    total, count = 0.0, 0
    for tree in plain:
        mean = sum(branch.values["score"] for branch in tree.branches) / len(tree.branches)
        for branch in tree.branches:
            r = ratio(tree.tokens, branch.tokens)
            if branch.values["score"] > mean:
                total = total + 1.1 * (1 - torch.sigmoid(0.3 * (r - point)))
            elif branch.values["score"] < mean:
                total = total + 0.9 * (1 - torch.sigmoid(0.3 * (point - r)))
            count += branch.values["score"] != mean
    assert objective.num_items(batch) == count == 6
    torch.testing.assert_close(output.loss_sum, total, rtol=1e-5, atol=1e-5)
    total.backward()
    for mine, other in zip(ours, gradients(policy), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_kto_on_answers_that_are_marked_by_themselves(models, tmp_path):
    """One answer a prompt, marked against its score; beside a tree whose marks come from the mean."""
    policy, reference = models
    marked = [Segment([1, 4], branches=[Segment([5, 2], trained=True, values={"score": 1.0, "is_good": 0.0})])]
    marked += [Segment([1, 6], branches=[Segment([7, 2], trained=True, values={"score": 0.0, "is_good": 1.0})])]
    objective = KTOObjective(0.3, 1.1, 0.9)
    for plain, count in ((marked, 2), ([*marked, *trees()], 8)):
        (widened,) = reference_trees(
            reference, [MismatchedAnswers(plain, token_budget=64)], token_budget=64, cache_dir=tmp_path
        )
        batch = PackedBatch.from_trees(widened)
        assert objective.num_items(batch) == count
        metrics = objective(policy, batch).metrics
        assert metrics["reward_good"][1] + metrics["reward_bad"][1] == count
    batch = PackedBatch.from_trees(*reference_trees(reference, [marked], token_budget=64, cache_dir=tmp_path))
    output = objective(policy, batch)
    ratio = [
        (logprobs(policy, tree.tokens, answer.tokens) - logprobs(reference, tree.tokens, answer.tokens)).sum().item()
        for tree in marked
        for answer in tree.branches
    ]
    sigmoid = torch.sigmoid(0.3 * torch.tensor([-ratio[0], ratio[1]]))
    expected = 0.9 * (1 - sigmoid[0]) + 1.1 * (1 - sigmoid[1])
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-5, atol=1e-5)
    assert objective.margins(policy, batch).shape == (0,)


def test_mismatched_answers_are_of_another_prompt():
    def tree(prompt, answer):
        return Segment([1, prompt], branches=[Segment([answer, 2], trained=True, values={"score": 1.0})])

    rows = [tree(4, 5), tree(4, 6), tree(7, 8), tree(4, 9)]
    found = [one.branches[1].tokens[0] for one in MismatchedAnswers(rows, token_budget=64)]
    assert found == [8, 8, 9, 8]  # the last one's next is the first, of the same prompt
    assert [len(one.branches) for one in MismatchedAnswers(rows[:2], token_budget=64)] == [1, 1]


def test_mismatched_answers_stay_within_the_budget():
    # 14 + 3, 7 + 3 and 12 + 5 tokens: the second alone has room for one more
    assert [len(tree.branches) for tree in MismatchedAnswers(trees(), token_budget=16)] == [3, 3, 2]
    assert len(MismatchedAnswers(trees()[:1], token_budget=64)[0].branches) == 3  # nobody else's answer


@pytest.mark.parametrize("name", [*(name for name in loss_names() if name != "apo_down"), "kto"])
def test_a_few_steps_raise_the_margin(models, tmp_path, name):
    policy, reference = models
    ranked = trees()
    if name == "kto":
        objective, ranked = KTOObjective(0.3), MismatchedAnswers(ranked, token_budget=64)
    else:
        objective = PreferenceObjective(LossSettings(0.3, SMOOTHING.get(name, 0.0)), [name])
    if objective.needs_reference:
        (ranked,) = reference_trees(reference, [ranked], token_budget=64, cache_dir=tmp_path)
    batch = PackedBatch.from_trees(ranked)
    before = objective.margins(policy, batch).mean()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(5):
        (objective(policy, batch).loss_sum / objective.num_items(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert objective.margins(policy, batch).mean() > before


# -- reward models -----------------------------------------------------------------------------------------------------


@pytest.fixture
def judge():
    return build_scalar_model(build_llama(seed=0), seed=1)


def score(model, prompt, answer) -> torch.Tensor:
    return model.score(model.model(torch.tensor([[*prompt, *answer]])).last_hidden_state)[0, -1, 0]


def test_margin_and_centering_are_those_of_trl(judge):
    """RewardTrainer's loss of the same pairs, whose margins are the differences of the records' scores."""
    objective = RewardObjective("last", margin_coef=0.4, center_coef=0.05)
    ranked = trees()
    batch = PackedBatch.from_trees(ranked)
    ours = objective(judge, batch).loss_sum / objective.num_items(batch)
    ranks = {tuple(branch.tokens): branch.values["score"] for tree in ranked for branch in tree.branches}
    pairs = list(pairs_of(ranked))
    winners, losers = ([score(judge, pair[0], pair[side]) for pair in pairs] for side in (1, 2))
    margin = torch.tensor([0.4 * (ranks[tuple(winner)] - ranks[tuple(loser)]) for _, winner, loser in pairs])
    logits = torch.stack([*winners, *losers])[:, None]
    same = lambda x: x  # noqa: E731
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=0.05),
        accelerator=SimpleNamespace(gather=same, gather_for_metrics=same),
        _metrics={"eval": {name: [] for name in ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")}},
        _total_train_tokens=0,
    )
    inputs = {"margin": margin}
    theirs = RewardTrainer.compute_loss(trainer, lambda **inputs: SimpleNamespace(logits=logits), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rankings_over_trees(judge):
    objective = RewardObjective("plackett_luce")
    ranked = trees()
    batch = PackedBatch.from_trees(ranked)
    assert objective.num_items(batch) == 3 and objective.item_name == "ranking"
    expected = 0.0
    for tree in ranked:
        order = sorted(tree.branches, key=lambda branch: -branch.values["score"])
        scores = torch.stack([score(judge, tree.tokens, branch.tokens) for branch in order])
        expected = expected - sum(scores[k] - scores[k:].logsumexp(0) for k in range(len(order)))
    torch.testing.assert_close(objective(judge, batch).loss_sum, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_type": "span", "margin_coef": 1.0}, "^margin_coef: has no effect"),
        ({"loss_type": "plackett_luce", "label_smoothing": 0.1}, "^label_smoothing: has no effect"),
        ({"loss_type": "plackett_luce", "center_coef": 0.1}, "^center_rewards_coefficient: "),
        ({"label_smoothing": 0.6}, "^label_smoothing: .*got 0.6"),
        ({"loss_type": "first"}, "^loss_type: first"),
    ],
)
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RewardObjective(**settings)
