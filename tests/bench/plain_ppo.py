"""The plain way to take a step of PPO, after DeepSpeed-Chat's ppo_trainer.py: what `ppo.py` compares ours with.

A row is [left pads | prompt | response | pads], and a prompt stands in as many rows as it has responses. Every model
sees whole rows, actor and reference compute the logits of every position, and each step is a few lines of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from keju.rl.rollout import Rollout

BONUS = 1e4


@dataclass
class Rows:
    """B rows of L tokens; T = L - 1 predictions, and the actions are those from `start` on."""

    seq: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] 1 = token
    start: int  # the last prompt token predicts the first action
    owner: Tensor  # [B] number of the prompt

    def of(self, owners: Sequence[int]) -> Tensor:
        """The rows of these prompts."""
        return torch.isin(self.owner, torch.tensor(owners)).nonzero().squeeze(1)


@dataclass
class PlainExperience:
    rows: Rows
    scores: Tensor  # [B]
    logprobs: Tensor  # [B, T], like all below
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass
class PlainPPO:
    """`batch_size`: rows that go through a model at once."""

    actor: PreTrainedModel
    reference: PreTrainedModel
    critic: PreTrainedModel
    reward_model: PreTrainedModel
    pad_id: int
    batch_size: int
    actor_learning_rate: float
    critic_learning_rate: float
    max_grad_norm: float = 1.0
    kl_ctl: float = 0.1
    clip_reward_value: float = 5.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        trained = (self.actor, self.actor_learning_rate), (self.critic, self.critic_learning_rate)
        self.optimizers = [
            torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
            for model, rate in trained
        ]

    # -- generation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, rollouts: Sequence[Rollout], max_new_tokens: int) -> Rows:
        """Samples a response a row, which turns out to be that of `rollouts`, so that both sides go on alike."""
        wanted = padded(rollouts, self.pad_id)
        prompts = slice(0, wanted.start + 1)
        seq = self.actor.generate(
            wanted.seq[:, prompts],
            attention_mask=wanted.attention_mask[:, prompts],
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=self.pad_id,
            logits_processor=LogitsProcessorList([_Replay(wanted.seq)]),
        )
        assert torch.equal(seq, wanted.seq), "the plain loop did not write what it was to write"
        return Rows(seq, (seq != self.pad_id).long(), wanted.start, wanted.owner)

    # -- experience --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def experience(self, rows: Rows) -> PlainExperience:
        answers = rows.attention_mask[:, rows.start + 1 :].sum(1) > 1
        rows = Rows(rows.seq[answers], rows.attention_mask[answers], rows.start, rows.owner[answers])
        parts = []
        for seq, mask in zip(*(part.split(self.batch_size) for part in (rows.seq, rows.attention_mask)), strict=True):
            parts.append(
                (
                    end_score(self.reward_model, seq, mask, rows.start + 1, self.pad_id),
                    logprobs_of(self.actor, seq, mask),
                    logprobs_of(self.reference, seq, mask),
                    values_of(self.critic, seq, mask)[:, :-1],
                )
            )
        scores, logprobs, ref_logprobs, values = map(torch.cat, zip(*parts, strict=True))
        rewards, old_values = self.rewards(rows, scores, logprobs, ref_logprobs, values)
        advantages = torch.zeros_like(rewards)
        last = 0.0
        for t in reversed(range(rows.start, rewards.shape[1])):
            next_values = old_values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
            last = rewards[:, t] + self.gamma * next_values - old_values[:, t] + self.gamma * self.lam * last
            advantages[:, t] = last
        returns = advantages + old_values
        return PlainExperience(rows, scores, logprobs, ref_logprobs, old_values, rewards, advantages, returns)

    def rewards(self, rows: Rows, scores, logprobs, ref_logprobs, values) -> tuple[Tensor, Tensor]:
        """Rewards and values, both 0 after the end of a response (compute_rewards and train_rlhf)."""
        rewards, values = -self.kl_ctl * (logprobs - ref_logprobs), values.clone()
        ends = rows.start + rows.attention_mask[:, rows.start + 1 :].sum(1) + 1
        for row, (end, score) in enumerate(
            zip(ends, scores.clamp(-self.clip_reward_value, self.clip_reward_value), strict=True)
        ):
            rewards[row, rows.start : end][-1] += score
            rewards[row, end:], values[row, end:] = 0, 0
        return rewards, values

    # -- update ------------------------------------------------------------------------------------------------------

    def backward(self, old: PlainExperience, chosen: Tensor) -> tuple[float, float]:
        """Policy and value loss of the rows `chosen`, and their gradients."""
        seq, mask = old.rows.seq[chosen], old.rows.attention_mask[chosen]
        actions = slice(old.rows.start, None)
        advantages, returns = old.advantages[chosen, actions], old.returns[chosen, actions]
        old_logprobs, old_values = old.logprobs[chosen, actions], old.values[chosen, actions]
        action_mask = mask[:, 1:][:, actions]

        ratio = ((logprobs_of(self.actor, seq, mask)[:, actions] - old_logprobs) * action_mask).exp()
        clipped = ratio.clamp(1 - self.cliprange, 1 + self.cliprange)
        policy_loss = (torch.max(-advantages * ratio, -advantages * clipped) * action_mask).sum() / action_mask.sum()
        policy_loss.backward()

        values = values_of(self.critic, seq, mask)[:, :-1][:, actions]
        clipped = torch.clamp(values, old_values - self.cliprange_value, old_values + self.cliprange_value)
        errors = torch.max((values - returns) ** 2, (clipped - returns) ** 2)
        value_loss = 0.5 * (errors * action_mask).sum() / action_mask.sum()
        value_loss.backward()
        return policy_loss.item(), value_loss.item()

    def update(self, old: PlainExperience, chosen: Tensor) -> tuple[float, float]:
        losses = self.backward(old, chosen)
        for model, optimizer in zip((self.actor, self.critic), self.optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        return losses


def padded(rollouts: Sequence[Rollout], pad_id: int) -> Rows:
    rows = [
        (*pair, owner) for owner, own in enumerate(rollouts) for pair in ((own.prompt, r.ids) for r in own.responses)
    ]
    before, after = (max(len(row[part]) for row in rows) for part in (0, 1))
    seq = torch.tensor(
        [[pad_id] * (before - len(p)) + [*p, *ids] + [pad_id] * (after - len(ids)) for p, ids, _ in rows]
    )
    return Rows(seq, (seq != pad_id).long(), before - 1, torch.tensor([owner for *_, owner in rows]))


def logprobs_of(model: PreTrainedModel, seq: Tensor, mask: Tensor) -> Tensor:
    logits = model(seq, attention_mask=mask, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits, dim=-1).gather(-1, seq[:, 1:, None]).squeeze(-1)


def values_of(model: PreTrainedModel, seq: Tensor, mask: Tensor) -> Tensor:
    return model.score(model.model(seq, attention_mask=mask, use_cache=False).last_hidden_state).squeeze(-1)


def end_score(model: PreTrainedModel, seq: Tensor, mask: Tensor, prompt_length: int, pad_id: int) -> Tensor:
    """The value at the last token before the first pad behind the prompt."""
    values = values_of(model, seq, mask)
    ends = []
    for row in seq[:, prompt_length:]:
        pads = (row == pad_id).nonzero()
        ends.append(prompt_length + (int(pads[0]) if len(pads) else len(row)) - 1)
    return values[torch.arange(len(seq)), ends]


class _Replay(LogitsProcessor):
    """Makes sampling find the next token of `seq`: its score is raised, everything else is done as ever."""

    def __init__(self, seq: Tensor) -> None:
        self.seq = seq

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        column = min(input_ids.shape[1], self.seq.shape[1] - 1)
        scores[torch.arange(len(scores)), self.seq[:, column]] += BONUS
        return scores
