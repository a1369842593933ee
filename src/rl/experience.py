"""From rollouts to experience: scores, log-probs, values, rewards and advantages of every action.

A prompt with its responses is one token tree (root: prompt, branches: actions), so that each of the four models
computes the prompt once. Trees are packed into a token budget; what comes out of a pack is scattered into padded [B, T]
tensors, row = response, column = action, on which the formulas work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keju.models.backbone import tree_logprobs, tree_token_scores
from keju.rl.advantages import explained_variance, gae, masked_mean, whiten
from keju.rl.modes import Actions, rules_of
from keju.rl.rewards import FixedKLController, RunningMoments, kl_estimate, shape_scores, token_rewards
from keju.rl.rollout import Rollout
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack
from keju.trees.segment import Segment


@dataclass
class Scored:
    """What the models say about B responses of up to T actions. `mask` and `loss_mask` are bool, True = counts."""

    rollouts: list[Rollout]  # without the responses that the mode drops
    trees: list[Segment]  # values["row"] of a branch: its row below
    mask: Tensor  # [B, T] actions
    loss_mask: Tensor  # [B, T] actions that are trained
    logprobs: Tensor  # [B, T] of the policy that generated
    ref_logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T] of the state before each action
    scores: Tensor  # [B] the reward model's, raw
    finished: Tensor  # [B] bool
    lengths: Tensor  # [B] generated tokens

    @property
    def kl(self) -> Tensor:
        """[B] KL(policy || reference) of each response, summed over its actions: k3, never negative."""
        return torch.where(self.loss_mask, kl_estimate(self.logprobs, self.ref_logprobs, "k3"), 0.0).sum(dim=1)


@dataclass
class Experience(Scored):
    terminal_rewards: Tensor = field(kw_only=True)  # [B] normalised, clipped, penalised scores
    rewards: Tensor = field(kw_only=True)  # [B, T]
    advantages: Tensor = field(kw_only=True)  # [B, T]
    returns: Tensor = field(kw_only=True)  # [B, T]

    def metrics(self) -> dict[str, float]:
        """Means over responses, but for those that say otherwise."""
        kl = self.kl
        return {
            "reward": float(self.scores.mean()),
            "reward_std": float(self.scores.std(unbiased=False)),
            "terminal_reward": float(self.terminal_rewards.mean()),
            "kl": float(kl.mean()),
            "kl_per_token": float(kl.sum() / self.loss_mask.sum()),
            "response_length": float(self.lengths.float().mean()),
            "fraction_finished": float(self.finished.float().mean()),
            "value": float(masked_mean(self.values, self.loss_mask)),
            "return": float(masked_mean(self.returns, self.loss_mask)),
            "explained_variance": explained_variance(self.values, self.returns, self.loss_mask),
        }


def response_trees(prompt: Sequence[int], actions: dict[int, Sequence[int]], token_budget: int) -> Iterator[Segment]:
    """The tree(s) of one prompt; `actions`: row -> ids. Several trees where one would not fit `token_budget`."""
    longest = len(prompt) + max(map(len, actions.values()))
    if longest > token_budget:
        raise ValueError(
            f"--token_budget {token_budget} does not hold a prompt of {len(prompt)} tokens with a response, {longest} "
            "together; raise it, or lower --max_prompt_length or --max_new_tokens"
        )
    tree = Segment(prompt)
    for row, ids in actions.items():
        if tree.num_tokens + len(ids) > token_budget:
            yield tree
            tree = Segment(prompt)
        tree.branches.append(Segment(ids, trained=True, values={"row": float(row)}))
    yield tree


def packed(trees: Sequence[Segment], token_budget: int, device: torch.device | str) -> Iterator[PackedBatch]:
    for members in pack([tree.num_tokens for tree in trees], token_budget):
        yield PackedBatch.from_trees([trees[index] for index in members]).to(device)


def action_coordinates(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Row and column in the padded [B, T] tensors of each of the N predictions of a pack: int64 [N], [N]."""
    rows = batch.values["row"][batch.target_segment].long()
    return rows, batch.token_index - batch.segment_start[batch.target_segment]


@torch.no_grad()
def score_rollouts(
    rollouts: Sequence[Rollout],
    *,
    actor: PreTrainedModel,
    reference: PreTrainedModel,
    critic: PreTrainedModel,
    reward_model: PreTrainedModel,
    mode: str,
    pad_id: int,
    temperature: float,
    token_budget: int,
) -> Scored:
    """Scores rollouts with the four models, which the caller keeps in eval mode (see PPOTrainer).

    `temperature` is that of sampling: the policy that acted is softmax(logits / temperature), and so is the one that is
    updated. Raises ValueError when the mode drops every response or one does not fit `token_budget`.
    """
    rules = rules_of(mode)
    temperature = temperature if rules.scores_at_temperature else 1.0
    width = max(len(response.ids) for rollout in rollouts for response in rollout.responses)
    kept: list[Rollout] = []
    actions: list[Actions] = []
    trees: list[Segment] = []
    for rollout in rollouts:
        chosen = [(response, rules.actions_of(response, width, pad_id)) for response in rollout.responses]
        chosen = [(response, found) for response, found in chosen if found is not None]
        if not chosen:
            continue
        kept.append(Rollout(rollout.prompt, tuple(response for response, _ in chosen)))
        rows = {len(actions) + number: found.tokens for number, (_, found) in enumerate(chosen)}
        trees += response_trees(rollout.prompt, rows, token_budget)
        actions += [found for _, found in chosen]
    if not actions:
        raise ValueError(f"--ppo_mode {mode}: every response is empty, nothing is left to learn from")

    device = actor.device
    num_actions = max(len(found.tokens) for found in actions)
    mask = torch.zeros(len(actions), num_actions, dtype=torch.bool)
    loss_mask = torch.zeros_like(mask)
    for row, found in enumerate(actions):
        mask[row, : len(found.tokens)] = True
        loss_mask[row, : len(found.tokens)] = torch.tensor(found.trained)
    score_index = torch.tensor([found.score_index for found in actions], device=device)
    logprobs, ref_logprobs, values = (torch.zeros(mask.shape, device=device) for _ in range(3))
    scores = torch.zeros(len(actions), device=device)

    for batch in packed(trees, token_budget, device):
        rows, columns = action_coordinates(batch)
        logprobs[rows, columns] = tree_logprobs(actor, batch, temperature=temperature).logprobs
        ref_logprobs[rows, columns] = tree_logprobs(reference, batch, temperature=temperature).logprobs
        # The value of the state in which an action is chosen: at the token before it (the prompt's last, at first).
        values[rows, columns] = tree_token_scores(critic, batch)[batch.source]
        branches = ~batch.values["row"].isnan()
        rows = batch.values["row"][branches].long()
        scores[rows] = tree_token_scores(reward_model, batch)[batch.segment_start[branches] + score_index[rows]]

    responses = [response for rollout in kept for response in rollout.responses]
    return Scored(
        rollouts=kept,
        trees=trees,
        mask=mask.to(device),
        loss_mask=loss_mask.to(device),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        scores=scores,
        finished=torch.tensor([response.finished for response in responses], device=device),
        lengths=torch.tensor([len(response.ids) for response in responses], device=device),
    )


@dataclass
class RewardShaping:
    """Turns scores into rewards and advantages. `moments` None: not normalised; `clip_reward` None: not clipped."""

    kl_controller: FixedKLController
    kl_estimator: str = "k1"
    moments: RunningMoments | None = None
    clip_reward: float | None = 5.0
    missing_eos_penalty: float = 0.0
    length_penalty: float = 0.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True

    def experience(self, scored: Scored) -> Experience:
        # 1. Scores in units of their own running deviation, then clipped, then penalised.
        scores = scored.scores
        if self.moments is not None:
            self.moments.update(scores)
            scores = self.moments.normalise(scores)
        terminal_rewards = shape_scores(
            scores,
            scored.finished,
            scored.lengths,
            clip=self.clip_reward,
            missing_eos_penalty=self.missing_eos_penalty,
            length_penalty=self.length_penalty,
        )
        # 2. The KL to the reference is paid at every action, the score at the last one.
        kl = kl_estimate(scored.logprobs, scored.ref_logprobs, self.kl_estimator)
        rewards = token_rewards(terminal_rewards, kl, scored.mask, self.kl_controller.coef)
        # 3. Advantages and returns once a rollout, not once an epoch.
        advantages, returns = gae(rewards, scored.values, scored.mask, self.gamma, self.lam)
        # 4. Whitening over the actions of the whole rollout, after the returns are taken.
        if self.whiten_advantages:
            advantages = whiten(advantages, scored.loss_mask)
        return Experience(
            **vars(scored),
            terminal_rewards=terminal_rewards,
            rewards=rewards,
            advantages=advantages,
            returns=returns,
        )
