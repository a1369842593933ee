"""What the four models say about rollouts: log-probs, reference log-probs, values and scores, a pass of each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keju.errors import UserError
from keju.models.backbone import tree_logprobs, tree_token_scores
from keju.rl.joint import REWARD
from keju.rl.modes import rules_of
from keju.rl.response_trees import ResponseTrees, Share, action_coordinates, branch_rows, lay_out, own_batches
from keju.rl.rewards import kl_estimate
from keju.rl.rollout import Rollout
from keju.rl.translation import Translation
from keju.training.processes import sum_over_processes
from keju.training.stage_model import Read, model_inside, passes_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment


@dataclass
class Scored(ResponseTrees):
    """B responses of up to T actions with what the models say about them."""

    logprobs: Tensor  # [B, T] of the policy that generated
    ref_logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T] of the state before each action
    scores: Tensor  # [B] the reward model's, raw
    judge_scores: Tensor | None  # [B] those of a held-out judge

    @property
    def kl(self) -> Tensor:
        """[B] KL(policy || reference) of each response, summed over its actions: k3, never negative."""
        return torch.where(self.loss_mask, kl_estimate(self.logprobs, self.ref_logprobs, "k3"), 0.0).sum(dim=1)


class Reader(NamedTuple):
    """A reward model, and how it reads responses when its tokenizer is not the actor's."""

    model: nn.Module
    translation: Translation | None = None


@torch.no_grad()
def score_rollouts(
    rollouts: Sequence[Rollout],
    *,
    actor: nn.Module,
    reference: nn.Module,
    critic: nn.Module,
    reward: Reader,
    judge: Reader | None = None,
    mode: str,
    pad_id: int,
    temperature: float,
    token_budget: int,
) -> Scored:
    """Scores rollouts with the four models, which the caller keeps in eval mode (see PPOTrainer).

    Each is a model, or what computes its passes (see StageModel). The processes of a run share the packs out.

    `temperature` is that of sampling: the policy that acted is softmax(logits / temperature), and so is the one that is
    updated. `judge`: another reward model, which only watches. Reference, reward model and judge may stay in another
    device's memory: they come over for their pass. Raises UserError when the mode drops every response or one does not
    fit `token_budget`.
    """
    device = model_inside(passes_of(actor)).device
    laid_out = lay_out(rollouts, mode=mode, pad_id=pad_id, token_budget=token_budget, device=device)
    batches = own_batches(laid_out.trees, token_budget, device)
    temperature = temperature if rules_of(mode).scores_at_temperature else 1.0
    logprobs = _token_logprobs(actor, batches, laid_out.mask, temperature)
    with resident(reference, device):
        ref_logprobs = _token_logprobs(reference, batches, laid_out.mask, temperature)
    # The value of the state in which an action is chosen: at the token before it (the prompt's last, at first).
    values = _of_actions(critic, batches, laid_out.mask, state_values)
    scores = _response_scores(reward, laid_out, batches, token_budget)
    judge_scores = _response_scores(judge, laid_out, batches, token_budget) if judge is not None else None
    return Scored(
        **vars(laid_out),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        scores=scores,
        judge_scores=judge_scores,
    )


def _token_logprobs(model: nn.Module, batches: Sequence[Share], mask: Tensor, temperature: float) -> Tensor:
    return _of_actions(model, batches, mask, lambda *pass_: tree_logprobs(*pass_, temperature=temperature).logprobs)


def _of_actions(model: nn.Module, batches: Sequence[Share], mask: Tensor, read: Read) -> Tensor:
    """What `read` gives at each prediction, of all processes: float32 [B, T], zero where there is no action."""
    passes = passes_of(model)
    numbers = torch.zeros(mask.shape, device=mask.device)
    for batch, counts in batches:
        found = passes(batch, read)
        if counts:
            numbers[action_coordinates(batch)] = found.float()
    return sum_over_processes(numbers)


def state_values(critic: nn.Module, batch: PackedBatch) -> Tensor:
    """float32 [N]: the critic's value of the state in which each predicted token of a pack is chosen.

    A critic that is the reward model, too, (joint optimisation) has two outputs; its values are the last.
    """
    return tree_token_scores(critic, batch)[batch.source, -1]


def _response_scores(reader: Reader, laid_out: ResponseTrees, batches: Sequence[Share], token_budget: int) -> Tensor:
    """float32 [B]: the score of each response, read where the mode says; of a translated one at its last token."""
    index, device = laid_out.score_index, laid_out.mask.device
    if reader.translation is not None:
        trees = reader.translation.trees(laid_out.rollouts, token_budget)
        _check_positions(reader.model, trees)
        batches = own_batches(trees, token_budget, device)
        index = torch.tensor([len(branch.tokens) - 1 for tree in trees for branch in tree.branches], device=device)
    passes = passes_of(reader.model)
    scores = torch.zeros(len(index), device=device)
    with resident(reader.model, device):
        for batch, counts in batches:
            segments, rows = branch_rows(batch)
            at = batch.segment_start[segments] + index[rows]
            found = passes(batch, tree_token_scores)[at, REWARD]
            if counts:
                scores[rows] = found
    return sum_over_processes(scores)


def _check_positions(model: nn.Module, trees: Sequence[Segment]) -> None:
    """Raises UserError for a response that the reward model of another tokenizer does not see whole."""
    positions = getattr(model_inside(passes_of(model)).config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(tree.tokens) + max(len(branch.tokens) for branch in tree.branches) for tree in trees)
    if positions is not None and longest > positions:
        raise UserError(
            f"a prompt and its response are {longest} tokens in the tokenizer of a reward model that has {positions} "
            "positions; lower it, or --max_prompt_length",
            option="max_new_tokens",
        )


@contextmanager
def resident(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on `device` for as long as it is used; afterwards back where it was.

    An engine of ZeRO-3 keeps its weights where its configuration says.
    """
    if hasattr(model, "module"):
        yield
        return
    model = model_inside(passes_of(model))
    home = model.device
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
