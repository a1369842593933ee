"""Models over the same weight tensors: the memory of one, and of what each has for itself."""

import copy
import re

import torch
from transformers import PreTrainedModel

from keju.kernels.nf4 import NF4, dequantize_nf4
from keju.models.backbone import backbone_of
from keju.training.adapters import has_adapters

# What PEFT puts between the name of a layer and that of its weight.
WRAPPERS = re.compile(r"\.(base_layer|original_module)\.")


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares the frozen weights of `model`: it costs what is trained only."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, memo=frozen)


@torch.no_grad()
def share_weights(model: PreTrainedModel, base: PreTrainedModel) -> bool:
    """Puts the tensors of the backbone of `base` in the place of those in `model`, if all are equal; whether they were.

    Weights under adapters of PEFT are compared with the plain ones of the base; adapters that are trained have none.
    """
    shared = dict(backbone_of(base).named_parameters())
    places = []
    for path, module in backbone_of(model).named_modules():
        for leaf, tensor in module._parameters.items():
            if tensor is None or (has_adapters(model) and tensor.requires_grad):
                continue
            name = WRAPPERS.sub(".", f"{path}.{leaf}")
            if name not in shared or not _equal(tensor, shared[name]):
                return False
            places.append((module, leaf, shared[name]))
    for module, leaf, tensor in places:
        module._parameters[leaf] = tensor
    return True


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a, b):
        return False
    states = [getattr(tensor, "quant_state", None) for tensor in (a, b)]
    if states == [None, None]:
        return True
    # The same levels of bitsandbytes may have other scales.
    return None not in states and torch.equal(
        *(dequantize_nf4(NF4.from_bitsandbytes(tensor.data, tensor.quant_state)) for tensor in (a, b))
    )
