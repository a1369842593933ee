"""Direct preference losses, per pair of answers (DPO, arXiv 2305.18290, and its relatives)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LOSS_TYPES = ("sigmoid", "ipo", "hinge")


def preference_loss(
    winner: torch.Tensor,
    loser: torch.Tensor,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """[P], [P] -> [P].

    winner, loser: log pi(y|x) - log pi_ref(y|x) of the answers, summed over their tokens; for "ipo" averaged over them
    (see `uses_average`). With `--reference_free` log pi_ref is taken as 0.

    - sigmoid: -(1-e) log sigmoid(beta d) - e log sigmoid(-beta d), d = winner - loser, e = label_smoothing: the chance
      that a label is wrong (conservative DPO, Mitchell 2023)
    - ipo: (d - 1 / (2 beta))^2, arXiv 2310.12036, equation 17
    - hinge: max(0, 1 - beta d), SLiC, arXiv 2305.10425

    Raises ValueError for an unknown loss type.
    """
    difference = winner - loser
    if loss_type == "sigmoid":
        agree, disagree = F.logsigmoid(beta * difference), F.logsigmoid(-beta * difference)
        return -(1 - label_smoothing) * agree - label_smoothing * disagree
    if loss_type == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    if loss_type == "hinge":
        return torch.relu(1 - beta * difference)
    raise ValueError(f"--loss_type {loss_type}: choose from {', '.join(LOSS_TYPES)}")


def uses_average(loss_type: str) -> bool:
    """Whether a loss compares log-probabilities per token instead of summed ones."""
    return loss_type == "ipo"
