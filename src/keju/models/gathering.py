"""Whole weights where ZeRO-3 keeps them in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def in_pieces(model: nn.Module) -> bool:
    """Whether ZeRO-3 has cut weights of `model` up."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextmanager
def whole(parameters: Sequence[nn.Parameter], *, write: bool = False) -> Iterator[None]:
    """The parameters gathered, on every process, to be read; those that are not in pieces stay as they are.

    write: what the first process changes in them is kept.
    """
    pieces = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not pieces:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(pieces, modifier_rank=0 if write else None):
        yield


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights of `model` gathered once, for a whole phase; without it ZeRO-3 gathers every layer for every token.

    model: a DeepSpeed engine, or a plain module, for which there is nothing to do. All processes must enter and leave;
    in between none waits for another, so that each may generate as long as its responses are. The weights are read.
    """
    if not in_pieces(model):
        yield
        return
    from trl.models.utils import add_hooks, remove_hooks

    with whole(list(model.parameters())):
        remove_hooks(model)  # they would give each layer back as soon as it has been used
        try:
            yield
        finally:
            add_hooks(model)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model. Where ZeRO-3 has cut weights up, the first process, which writes, gets copies in CPU
    memory; the others lack these names.

    All processes must call; names of one tensor share it in what comes back, too.
    """
    copies: dict[int, Tensor | None] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not hasattr(tensor, "ds_id"):
            state[name] = tensor.detach()
            continue
        is_first = torch.distributed.get_rank() == 0
        if id(tensor) not in copies:
            with whole([tensor]):
                copies[id(tensor)] = tensor.detach().cpu().clone() if is_first else None
        if is_first:
            state[name] = copies[id(tensor)]
    return state
