"""What an op file declares: cases, and for each the providers that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

# The passes that a case may ask for: without gradients; with those of all inputs that require one; and one call that
# does all there is to do, its own backward pass included.
FORWARD = "forward"
TRAINING = "forward + backward"
STEP = "step"


class Setting(NamedTuple):
    """size "full": shapes of an 8B Llama, on a GPU; "small": a second or less on the CPU; "tiny": for a smoke run."""

    device: str
    dtype: torch.dtype
    size: Literal["full", "small", "tiny"]


class Work(NamedTuple):
    """The least that a pass has to do: bytes read and written, floating-point operations in matrix products."""

    moved: float = 0.0
    flops: float = 0.0


class Absent(NamedTuple):
    """A provider that cannot run here, and why."""

    reason: str


@dataclass(frozen=True)
class Provider:
    """run(**inputs) -> a tensor, or several (None among them does not count).

    Where an implementation takes its inputs in another form: pack(**inputs) makes what run takes, unpack(outputs) turns
    its outputs into those of the others. Both are differentiable, and neither is timed.
    """

    run: Callable[..., Any]
    pack: Callable[..., dict[str, torch.Tensor]] | None = None
    unpack: Callable[[Any], Any] | None = None


Inputs = dict[str, torch.Tensor]
Providers = dict[str, Provider | Absent]


@dataclass(frozen=True)
class Case:
    """build() -> the inputs and the providers, "torch" among them: what the others must agree with.

    work: its keys are the passes to run. widen: "torch" computes what is expected in a wider dtype than the case's.
    reference: the provider that stands for "torch", if it has another name.
    tokens: how many go through a pass, where tokens a second say more than milliseconds.
    """

    name: str
    dtype: torch.dtype
    work: dict[str, Work]
    build: Callable[[], tuple[Inputs, Providers]]
    widen: bool = True
    reference: str = "torch"
    tokens: int = 0


def draw(setting: Setting, *shape: int, scale: float = 1.0, trained: bool = True, seed: int = 0) -> torch.Tensor:
    """Normal values of the setting's dtype and device; the same for the same shape and seed every time."""
    generator = torch.Generator(setting.device).manual_seed(seed)
    values = torch.randn(shape, generator=generator, device=setting.device) * scale
    return values.to(setting.dtype).requires_grad_(trained)


def draw_heads(setting: Setting, heads: int, length: int, head_dim: int, seed: int = 0) -> torch.Tensor:
    """[1, heads, length, head_dim] in the layout that a projection leaves: the heads of a token lie together."""
    return draw(setting, 1, length, heads, head_dim, seed=seed).detach().transpose(1, 2).requires_grad_()


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    return tuple(output for output in outputs if output is not None)


def run(provider: Provider, inputs: Inputs, kind: str, upstream: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """One pass; the outputs, or with TRAINING the gradients of all inputs that require one."""
    if kind == FORWARD:
        with torch.no_grad():
            return as_tuple(provider.run(**inputs))
    outputs = as_tuple(provider.run(**inputs))
    if kind == STEP:
        return outputs
    return torch.autograd.grad(outputs, [x for x in inputs.values() if x.requires_grad], upstream)


def fresh(inputs: Inputs) -> Inputs:
    """Copies, in the same layout: some implementations write gradients over their inputs."""
    return {name: x.detach().clone().requires_grad_(x.requires_grad) for name, x in inputs.items()}
