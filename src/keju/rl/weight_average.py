"""A moving average of the weights that are trained, as DeepSpeed-Chat keeps one of the actor."""

import torch
from torch import Tensor, nn

from keju.models.gathering import whole_state_dict


class WeightAverage:
    """average = decay * average + (1 - decay) * weights, in float32, of the trained parameters of a model.

    Where ZeRO-3 has cut these into pieces, each process averages its own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: _own(parameter).float().clone() for name, parameter in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, parameter in _trained(model):
            self.weights[name].lerp_(_own(parameter).float(), 1 - self.decay)

    @torch.no_grad()
    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """whole_state_dict with the averages in the place of the trained weights. All processes must call."""
        state = whole_state_dict(model)
        for name, parameter in _trained(model):
            average = self.weights[name]
            if hasattr(parameter, "ds_id"):
                average = _joined(average, parameter)
            if name in state:
                state[name] = average.to(parameter.dtype).cpu()
        return state


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _own(parameter: nn.Parameter) -> Tensor:
    """What this process keeps of a parameter: all of it, or its piece."""
    return parameter.ds_tensor if hasattr(parameter, "ds_id") else parameter.detach()


def _joined(piece: Tensor, parameter: nn.Parameter) -> Tensor:
    piece = piece.to(parameter.device)
    pieces = [torch.empty_like(piece) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(pieces, piece)
    return torch.cat(pieces)[: parameter.ds_numel].view(parameter.ds_shape)
