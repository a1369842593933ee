"""Before anything is timed: outputs and gradients of every provider against plain torch in a wider dtype."""

from __future__ import annotations

import torch
from harness.case import TRAINING, Case, Inputs, Provider, as_tuple, fresh

# As a share of the expected tensor, by its largest magnitude and by its root mean square: rounding of the result plus
# that of inner steps.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
WIDER = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}


def expected(case: Case, provider: Provider, inputs: Inputs) -> list[torch.Tensor]:
    """What `figures` of any provider should be."""
    if case.widen:
        inputs = {
            name: x.detach().to(WIDER[x.dtype]).requires_grad_(x.requires_grad) if x.dtype in WIDER else x
            for name, x in inputs.items()
        }
    return figures(case, provider, inputs)


def figures(case: Case, provider: Provider, inputs: Inputs) -> list[torch.Tensor]:
    """Outputs, then the gradients of all inputs that require one, for the same gradients of the outputs every time."""
    inputs = fresh(inputs)
    outputs = provider.run(**(provider.pack(**inputs) if provider.pack else inputs))
    outputs = as_tuple(provider.unpack(outputs) if provider.unpack else outputs)
    kept = [x.detach().clone() for x in outputs]  # a backward pass may write over them
    if TRAINING not in case.work:
        return kept
    generator = torch.Generator(outputs[0].device).manual_seed(0)
    upstream = [torch.randn(x.shape, generator=generator, device=x.device).to(case.dtype).to(x.dtype) for x in outputs]
    return kept + list(torch.autograd.grad(outputs, [x for x in inputs.values() if x.requires_grad], upstream))


def error(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The greatest deviation as a share of what is expected; infinity for other shapes, NaN where there is a NaN."""
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return float("inf")
    errors = [0.0]
    for x, y in zip(found, wanted, strict=True):
        if y.numel():
            difference = (x.to(y.dtype) - y).abs_()
            errors.append((difference.max() / (y.abs().max() or 1.0)).item())
            errors.append((difference.norm() / (y.norm() or 1.0)).item())
    return float(torch.tensor(errors, dtype=torch.float64).max())  # NaN if there is one
