"""Joint optimisation of reward and policy: the reward model is the critic, too.

One backbone with two outputs, the reward and the value. The reward goes on learning from ranked answers, so that it
keeps up with what the policy writes, while the value learns the returns; both shape the backbone, and three models are
in memory instead of four. The paid reward is that of the model as it stands.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from keju.models.gathering import whole_state_dict

REWARD = 0  # the other output is the last one, see scoring.state_values


def add_value_output(model: PreTrainedModel) -> None:
    """Gives a reward model a second output, the value, that starts as a copy of the first."""
    _reshape_head(model, [REWARD, REWARD])


@contextmanager
def reward_alone(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The state of the model without its value output, as reward models are saved; its config says so in the block.

    All processes must enter.
    """
    state = whole_state_dict(model)
    heads = {id(parameter) for *_, head in _heads(model) for parameter in head.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in heads and name in state:
            state[name] = state[name][[REWARD]]
    model.config.num_labels = 1
    try:
        yield state
    finally:
        model.config.num_labels = 2


def _reshape_head(model: PreTrainedModel, rows: list[int]) -> None:
    for owner, name, head in _heads(model):
        resized = nn.Linear(head.in_features, len(rows), bias=head.bias is not None, device=head.weight.device)
        resized.to(head.weight.dtype).requires_grad_(head.weight.requires_grad)
        with torch.no_grad():
            resized.weight.copy_(head.weight[rows])
            if head.bias is not None:
                resized.bias.copy_(head.bias[rows])
        setattr(owner, name, resized)
    model.config.num_labels = len(rows)


def _heads(model: PreTrainedModel) -> list[tuple[nn.Module, str, nn.Linear]]:
    """(module that holds it, name, head) of the head, and of the copy that PEFT keeps where adapters are trained."""
    if isinstance(model.score, nn.Linear):
        return [(model, "score", model.score)]
    return [
        (owner, name, head)
        for owner in model.score.modules()
        for name, head in owner.named_children()
        if isinstance(head, nn.Linear)
    ]
