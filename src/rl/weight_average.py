"""A moving average of the weights that are trained, as DeepSpeed-Chat keeps one of the actor."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = decay * average + (1 - decay) * weights, in float32, of the trained parameters of a model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: parameter.detach().float().clone() for name, parameter in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, parameter in _trained(model):
            self.weights[name].lerp_(parameter.float(), 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averages in place of its weights, for as long as it is used."""
        own = {name: parameter.detach().clone() for name, parameter in _trained(model)}
        _set(model, self.weights)
        try:
            yield
        finally:
            _set(model, own)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def _set(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in _trained(model):
        parameter.copy_(weights[name])
