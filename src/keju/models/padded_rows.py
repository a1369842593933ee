"""Padded rows from trainers that hand over ids and a mask alone, as those of TRL do."""

from __future__ import annotations

from torch import nn

from keju.models.backbone import backbone_of
from keju.models.prefix_lm import PrefixLM, row_positions


def position_by_mask(model: nn.Module) -> None:
    """From now on padded rows without position_ids stand as they do in generation and in token trees.

    Without this, models with absolute positions (PanGu, GPT-2) count the pads in front of a row, and ChatGLM-6B stands
    its answers elsewhere than it does when it generates.
    """
    backbone_of(model).register_forward_pre_hook(_add_positions, with_kwargs=True)


def _add_positions(backbone: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if ids is None or mask is None or mask.shape != ids.shape or kwargs.get("position_ids") is not None:
        return args, kwargs
    by_layout = isinstance(backbone, PrefixLM)
    positions = backbone.padded_layout(ids, mask)[0] if by_layout else row_positions(mask)
    return args, {**kwargs, "position_ids": positions}
