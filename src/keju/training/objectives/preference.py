"""DPO and its relatives: all ordered pairs of a prompt's ranked answers, from one pass over its tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from keju.errors import UserError
from keju.losses.pairs import Pairs, num_right, ordered_pairs
from keju.losses.preference_mix import PreferenceMix
from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side
from keju.models.backbone import tree_logprobs
from keju.training.objectives.objective import Objective, ObjectiveOutput
from keju.training.whole_batch import WholeBatch
from keju.trees.packed_batch import PackedBatch

METRICS = ("accuracy", "margin", "reward_chosen", "reward_rejected", "logprob_chosen", "logprob_rejected")


class PreferenceObjective(Objective):
    """Expects each answer's `score` and, where the loss has a reference, its summed `ref_logprob` in the trees.

    loss_types, weights: see PreferenceMix. reference_free: log pi_ref is taken as 0. ld_alpha: LD-DPO (Liu et al. 2024,
    arXiv 2409.06411, eq. 9): the tokens by which an answer is longer than the other of its pair count so much; the
    reference must then be known token by token (token_values["ref_logprob"]).
    """

    item_name = "pair"
    metric_names = METRICS

    def __init__(
        self,
        settings: LossSettings | None = None,
        loss_types: Sequence[str] = ("sigmoid",),
        weights: Sequence[float] | None = None,
        *,
        reference_free: bool = False,
        ld_alpha: float | None = None,
    ) -> None:
        self.mix = PreferenceMix(loss_types, weights, settings or LossSettings())
        self.facts_from = self.mix.facts_from
        self.needs_reference = self.mix.needs_reference and not reference_free
        self.ld_alpha = ld_alpha
        if ld_alpha is not None and not 0 <= ld_alpha <= 1:
            raise UserError(f"must be between 0 and 1, got {ld_alpha}", option="ld_alpha")

    def num_items(self, batch: PackedBatch) -> int:
        return len(ordered_pairs(batch.values["score"], batch.segment_tree).winner)

    def facts(self, model: nn.Module | None, batch: PackedBatch) -> torch.Tensor:
        """[P, 6]: all numbers of both sides; from the batch alone [P, 1], the lengths of the winners."""
        if model is None:
            winner = ordered_pairs(batch.values["score"], batch.segment_tree).winner
            return _lengths(batch)[winner, None].float()
        pairs = self._pairs(model, batch)
        return torch.stack([numbers.to(pairs.winner.logprob) for side in pairs for numbers in side.numbers], dim=1)

    def __call__(self, model: nn.Module, batch: PackedBatch, whole: WholeBatch | None = None) -> ObjectiveOutput:
        pairs = self._pairs(model, batch)
        if whole is None:
            loss_sum = self.mix(pairs).sum()
        elif self.facts_from == "batch":
            mean_length = whole.facts.mean()
            loss_sum = self.mix(PreferencePairs(*(side._replace(mean_length=mean_length) for side in pairs))).sum()
        else:
            # The loss of all pairs, of which those of this pack have gradients; it reports its share of the value.
            total = self.mix(_among_all(pairs, whole)).sum()
            loss_sum = total - total.detach() * (1 - len(pairs.winner.length) / len(whole.facts))
        with torch.no_grad():
            rewards = (self.mix.reward(side) for side in pairs)
            metrics = preference_metrics(*rewards, *(side.logprob for side in pairs))
        return ObjectiveOutput(loss_sum, metrics)

    def margins(self, model: nn.Module, batch: PackedBatch) -> torch.Tensor:
        """[P]: the implicit reward of the better answer minus that of the worse."""
        pairs = self._pairs(model, batch)
        return self.mix.reward(pairs.winner) - self.mix.reward(pairs.loser)

    def _pairs(self, model: nn.Module, batch: PackedBatch) -> PreferencePairs:
        logprobs = tree_logprobs(model, batch).logprobs
        pairs = ordered_pairs(batch.values["score"], batch.segment_tree)
        length = _lengths(batch)
        if self.ld_alpha is None:
            policy = segment_sums(logprobs, batch)
            reference = batch.values["ref_logprob"] if self.needs_reference else torch.zeros_like(policy)
            policy, reference = ([sums[side] for side in pairs] for sums in (policy, reference))
        else:
            ref_tokens = batch.token_values["ref_logprob"] if self.needs_reference else torch.zeros_like(logprobs)
            policy, reference = (
                tail_weighted_sums(tokens, length, pairs, self.ld_alpha) for tokens in (logprobs, ref_tokens)
            )
        lengths = (length[side].to(logprobs.dtype) for side in pairs)
        return PreferencePairs(*map(Side, policy, reference, lengths))


def _among_all(pairs: PreferencePairs, whole: WholeBatch) -> PreferencePairs:
    """All pairs of the whole batch, of which `pairs` stand in their place."""
    own, facts = whole.own, whole.facts
    columns = [
        torch.cat([facts[: own.start, number], ours, facts[own.stop :, number]])
        for number, ours in enumerate(numbers for side in pairs for numbers in side.numbers)
    ]
    return PreferencePairs(Side(*columns[:3]), Side(*columns[3:]))


def _lengths(batch: PackedBatch) -> torch.Tensor:
    """int64 [S]: trained tokens of each segment."""
    return batch.target_segment.bincount(minlength=batch.num_segments)


def preference_metrics(
    chosen: torch.Tensor, rejected: torch.Tensor, logprob_chosen: torch.Tensor, logprob_rejected: torch.Tensor
) -> dict[str, tuple[torch.Tensor, int]]:
    """Of the implicit rewards and log-probabilities of P pairs."""
    margin = chosen - rejected
    return {
        "accuracy": (num_right(margin), len(margin)),
        "margin": (margin.sum(), len(margin)),
        "reward_chosen": (chosen.sum(), len(margin)),
        "reward_rejected": (rejected.sum(), len(margin)),
        "logprob_chosen": (logprob_chosen.sum(), len(margin)),
        "logprob_rejected": (logprob_rejected.sum(), len(margin)),
    }


def segment_sums(tokens: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """[S]: numbers of predicted tokens, [N], summed over each segment."""
    return tokens.new_zeros(batch.num_segments).index_add(0, batch.target_segment, tokens)


def tail_weighted_sums(
    tokens: torch.Tensor, length: torch.Tensor, pairs: Pairs, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the tokens of winners and losers, [P] each; those past the length of the shorter one times `alpha`.

    tokens [N] in the order of segments, of which segment s has length[s]; length int64 [S].
    """
    running = torch.cat([tokens.new_zeros(1, dtype=torch.float64), tokens.double().cumsum(0)])
    start = length.cumsum(0) - length
    shared = torch.minimum(length[pairs.winner], length[pairs.loser])

    def weighted(side: torch.Tensor) -> torch.Tensor:
        first, last = start[side], start[side] + length[side]
        common = running[first + shared] - running[first]
        return (common + alpha * (running[last] - running[first + shared])).to(tokens.dtype)

    return weighted(pairs.winner), weighted(pairs.loser)
