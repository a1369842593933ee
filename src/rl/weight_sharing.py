"""Models over the same weight tensors: the memory of one, and of what each has for itself."""

import copy

import torch
from transformers import PreTrainedModel

from keju.models.backbone import backbone_of


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares the frozen weights of `model`: it costs what is trained only."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, memo=frozen)


@torch.no_grad()
def share_weights(model: PreTrainedModel, base: PreTrainedModel) -> bool:
    """Puts the tensors of the backbone of `base` in the place of equal ones in `model`; whether all of them were found.

    Nothing is replaced unless all are equal. Weights under adapters are compared with the plain ones of the base.
    """
    backbone = backbone_of(model)
    places = {}
    for path, module in backbone.named_modules():
        for leaf in module._parameters:
            name = f"{path}.{leaf}".removeprefix(".").replace(".base_layer.", ".")
            places[name] = (module, leaf)
    shared = dict(backbone_of(base).named_parameters())
    for name, tensor in shared.items():
        module, leaf = places.get(name, (None, ""))
        if module is None or not _equal(module._parameters[leaf], tensor):
            return False
    for name, tensor in shared.items():
        module, leaf = places[name]
        module._parameters[leaf] = tensor
    return True


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
