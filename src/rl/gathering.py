"""Whole weights for as long as responses are generated, where ZeRO-3 keeps them in pieces."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights of `model` gathered once, for a whole phase; without it ZeRO-3 gathers every layer for every token.

    model: a DeepSpeed engine, or a plain module, for which there is nothing to do. All processes must enter and leave;
    in between none waits for another, so that each may generate as long as its responses are. The weights are read.
    """
    pieces = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if not pieces:
        yield
        return
    from deepspeed import zero
    from trl.models.utils import add_hooks, remove_hooks

    with zero.GatheredParameters(pieces):
        remove_hooks(model)  # they would give each layer back as soon as it has been used
        try:
            yield
        finally:
            add_hooks(model)
