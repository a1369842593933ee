"""Which weights decay: matrices that multiply, and nothing else."""

from __future__ import annotations

from typing import Any

from torch import nn

# Classes of modules; the norms of transformers have no base class, but all are called so. A head that normalises its
# matrix (NormHead) is a linear layer.
SPARED = ("norm", "embedding", "embeddings")


def decayed_names(model: nn.Module) -> list[str]:
    """Names of the parameters of `model` that weight decay is for.

    Not for norms, biases and embeddings (token or position, and so no LM head that is tied to them), nor for anything
    of one dimension. It goes by the type of the module that holds a parameter: names differ from family to family.
    """
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if _is_spared(module) or name == "bias" or name.endswith("_bias") or _num_dimensions(parameter) < 2
    }
    return [name for name, parameter in model.named_parameters() if id(parameter) not in spared]


def decay_groups(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """The trained parameters of `model` as groups of an optimizer: those that decay, with `settings`; the others."""
    names = set(decayed_names(model))
    groups: list[dict[str, Any]] = [{"params": [], **settings}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in names]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _is_spared(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return True
    kinds = [kind.__name__.lower() for kind in type(module).__mro__]
    return not isinstance(module, nn.Linear) and any(kind.endswith(SPARED) for kind in kinds)


def _num_dimensions(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 keeps a flat piece of it
