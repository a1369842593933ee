"""How far the policy that sampled is from the one that is trained, where another engine samples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from keju.models.generation import Response
from keju.rl.rewards import kl_estimate


def rollout_mismatch(responses: Sequence[Response], logprobs: Tensor) -> dict[str, float]:
    """Figures of the sampled tokens; nothing where the sampler gave no log-probs.

    logprobs [B, T]: the trainer's, row = response. rollout_logprob_gap: mean |trainer - sampler| a token; ..._max: the
    largest; rollout_kl: KL(sampler || trainer) a token, k3.
    """
    rows = [(row, response.logprobs) for row, response in enumerate(responses) if response.logprobs is not None]
    if not rows:
        return {}
    own = torch.cat([logprobs[row, : len(theirs)].cpu() for row, theirs in rows])
    theirs = torch.tensor([number for _, numbers in rows for number in numbers])
    gap = (own - theirs).abs()
    return {
        "rollout_logprob_gap": float(gap.mean()),
        "rollout_logprob_gap_max": float(gap.max()),
        "rollout_kl": float(kl_estimate(theirs, own, "k3").mean()),
    }
