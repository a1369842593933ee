"""`--ppo_mode deepspeed_chat` against DeepSpeed-Chat's ppo_trainer.py, written down over its padded rows.

Rows are [left pads | prompt | answer | pads]; the end of an answer is known only by the pad's id.
"""

import pytest
import torch

from keju.models.generation import Response
from keju.rl.modes import deepspeed_chat_actions, keju_actions
from keju.trees.segment import Segment

EOS, PAD = 2, 3


def padded(rollouts, pad_id):
    rows = [(rollout.prompt, response.ids) for rollout in rollouts for response in rollout.responses]
    prompt_length = max(len(prompt) for prompt, _ in rows)
    answer_length = max(len(ids) for _, ids in rows)
    seq = torch.full((len(rows), prompt_length + answer_length), pad_id)
    for row, (prompt, ids) in enumerate(rows):
        seq[row, prompt_length - len(prompt) : prompt_length] = torch.tensor(prompt)
        seq[row, prompt_length : prompt_length + len(ids)] = torch.tensor(ids)
    keep = (seq[:, prompt_length:] != pad_id).sum(dim=1) > 1
    return seq[keep], prompt_length


def logprobs_of(model, seq, mask):
    logits = model(seq, attention_mask=mask).logits[:, :-1]
    return torch.log_softmax(logits, dim=-1).gather(-1, seq[:, 1:, None])[..., 0]


def values_of(model, seq, mask):
    return model.score(model.model(seq, attention_mask=mask).last_hidden_state)[..., 0]


@torch.no_grad()
def generate_experience(models, seq, prompt_length, pad_id):
    mask = (seq != pad_id).long()
    all_scores = values_of(models.reward_model, seq, mask)
    scores = []
    for row in range(len(seq)):
        pads = [t for t in range(prompt_length, seq.shape[1]) if seq[row, t] == pad_id]
        scores.append(all_scores[row, (pads[0] if pads else seq.shape[1]) - 1])
    return {
        "mask": mask,
        "logprobs": logprobs_of(models.actor, seq, mask),
        "ref_logprobs": logprobs_of(models.reference, seq, mask),
        "values": values_of(models.critic, seq, mask)[:, :-1],
        "scores": torch.stack(scores),
    }


def advantages_and_returns(experience, prompt_length, kl_ctl=0.1, clip=5.0, gamma=1.0, lam=0.95):
    start = prompt_length - 1
    action_mask = experience["mask"][:, 1:]
    rewards = -kl_ctl * (experience["logprobs"] - experience["ref_logprobs"])
    values = experience["values"].clone()
    ends = start + action_mask[:, start:].sum(dim=1) + 1
    for row in range(len(rewards)):
        rewards[row, start : ends[row]][-1] += experience["scores"][row].clamp(-clip, clip)
        rewards[row, ends[row] :] = 0
        values[row, ends[row] :] = 0
    advantages = torch.zeros_like(rewards)
    last = 0.0
    for t in reversed(range(start, rewards.shape[1])):
        next_values = values[:, t + 1] if t < rewards.shape[1] - 1 else 0.0
        last = rewards[:, t] + gamma * next_values - values[:, t] + gamma * lam * last
        advantages[:, t] = last
    return advantages, advantages + values, values


def losses(models, experience, seq, prompt_length, advantages, returns, old_values):
    start = prompt_length - 1
    mask = experience["mask"]
    action_mask = mask[:, 1:][:, start:]
    log_ratio = (logprobs_of(models.actor, seq, mask) - experience["logprobs"])[:, start:] * action_mask
    ratio = torch.exp(log_ratio)
    advantages, returns, old_values = advantages[:, start:], returns[:, start:], old_values[:, start:]
    policy = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2))
    values = values_of(models.critic, seq, mask)[:, :-1][:, start:]
    clipped = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    value = torch.max((values - returns) ** 2, (clipped - returns) ** 2)
    return (policy * action_mask).sum() / action_mask.sum(), 0.5 * (value * action_mask).sum() / action_mask.sum()


@pytest.mark.parametrize("pad_id", [PAD, EOS])
@pytest.mark.parametrize("temperature", [1.0, 0.5])  # log-probs do not know the temperature
def test_term_by_term(trainer_of, ppo_models, rollouts, tokenizer, pad_id, temperature):
    tokenizer.pad_token_id = pad_id
    ppo_models.reward_model.score.weight.data.mul_(4)  # so that the clip at 5 bites
    trainer = trainer_of(ppo_mode="deepspeed_chat", sampler={"temperature": temperature})
    ours = trainer.shaping.experience(trainer.score(rollouts))

    seq, prompt_length = padded(rollouts, pad_id)
    start = prompt_length - 1
    theirs = generate_experience(ppo_models, seq, prompt_length, pad_id)
    advantages, returns, values = advantages_and_returns(theirs, prompt_length)
    assert (theirs["scores"].abs() > 5).any()
    # Responses of one real token were dropped: the lone EOS, and where it counts as a pad the one before an EOS, too.
    assert len(ours.scores) == len(seq) == (5 if pad_id == PAD else 4)
    torch.testing.assert_close(ours.scores, theirs["scores"], atol=1e-4, rtol=1e-4)
    for row in range(len(seq)):
        length = int(ours.mask[row].sum())
        for mine, their in ((ours.advantages, advantages), (ours.returns, returns)):
            torch.testing.assert_close(mine[row, :length], their[row, start : start + length], atol=1e-4, rtol=1e-4)
        assert torch.equal(ours.loss_mask[row, :length].long(), theirs["mask"][row, 1:][start : start + length])

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*trainer.actor.parameters(), *trainer.critic.parameters()]:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    metrics = trainer.backward(ours, ours.trees)
    found = [parameter.grad.clone() for parameter in trainer.actor.parameters()]
    trainer.actor.zero_grad()
    policy, value = losses(ppo_models, theirs, seq, prompt_length, advantages, returns, values)
    assert metrics["policy_loss"] == pytest.approx(policy.item(), abs=1e-4)
    assert metrics["value_loss"] == pytest.approx(value.item(), rel=1e-4)
    policy.backward()
    for mine, parameter in zip(found, trainer.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-4, rtol=1e-3)


def test_where_the_reward_lands_in_either_mode():
    early, full = Response((7, 8, EOS), True), Response((7, 8, 9, 9), False)
    for response in (early, full):
        assert keju_actions(response, 4, PAD) == (response.ids, (True,) * len(response.ids), len(response.ids) - 1)
    # pad is not eos: one action later than the EOS, on the first pad; the score is read at the EOS
    assert deepspeed_chat_actions(early, 4, PAD) == ((7, 8, EOS, PAD), (True, True, True, False), 2)
    # ... unless the row ends there
    assert deepspeed_chat_actions(early, 3, PAD) == ((7, 8, EOS), (True, True, True), 2)
    assert deepspeed_chat_actions(full, 4, PAD) == ((7, 8, 9, 9), (True,) * 4, 3)
    # pad is eos: on the EOS, which is not trained; the score is read before it
    assert deepspeed_chat_actions(early, 4, EOS) == ((7, 8, EOS), (True, True, False), 1)
    assert deepspeed_chat_actions(Response((7, EOS), True), 4, EOS) is None
    assert deepspeed_chat_actions(Response((EOS,), True), 4, PAD) is None


def test_with_ptx_both_losses_are_halved(trainer_of):
    def gradient(mode, coef):
        trainer = trainer_of(ppo_mode=mode, ptx_trees=[Segment([1, 5, 6, 7], trained=True)], ptx_coef=coef)
        trainer.actor.zero_grad()
        trainer._backward_ptx(trainer.ptx_trees)
        return [parameter.grad.clone() for parameter in trainer.actor.parameters() if parameter.grad is not None]

    for halved, whole in zip(gradient("deepspeed_chat", 2.0), gradient("keju", 1.0), strict=True):
        torch.testing.assert_close(halved, whole)
