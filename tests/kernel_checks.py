"""Comparing a kernel with a float64 reference: outputs and the gradients of all inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from keju.kernels.nf4 import NF4

# Of the largest magnitude in the expected tensor: rounding of the result plus that of inner steps.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

ODD_SIZES = (1, 63, 65, 100, 127)


def draw(*shape: int, dtype=torch.float32, device="cpu", seed: int = 0, strided: bool = False) -> torch.Tensor:
    """Normal values that require a gradient; `strided`: rows with gaps between them, so that it is not contiguous."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)
    if strided and values.dim() > 1:
        wide = torch.full((*shape[:-1], shape[-1] + 3), float("nan"), dtype=dtype, device=device)
        wide[..., : shape[-1]] = values
        values = wide[..., : shape[-1]]
    return values.detach().requires_grad_()


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    assert found.shape == expected.shape, f"{name}: {list(found.shape)} instead of {list(expected.shape)}"
    if expected.numel():
        limit = TOLERANCE[dtype] * max(0.01, expected.abs().max().item())
        torch.testing.assert_close(
            found.cpu().double(), expected.cpu().double(), rtol=0, atol=limit, msg=lambda text: f"{name}: {text}"
        )


def as_tuple(outputs) -> tuple[torch.Tensor, ...]:
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
    return tuple(output for output in outputs if output is not None)


def compare(
    op: Callable, reference: Callable, inputs: Sequence[torch.Tensor | None], dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """op(*inputs) against reference(*inputs in float64); the outputs of op come back."""
    wide = [
        x if x is None or not x.is_floating_point() else x.detach().double().requires_grad_(x.requires_grad)
        for x in inputs
    ]
    outputs, expected = as_tuple(op(*inputs)), as_tuple(reference(*wide))
    assert len(outputs) == len(expected)
    for index, (found, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert_near(found, wanted, dtype, f"output {index}")
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device) for x in expected]
    trained = [index for index, x in enumerate(inputs) if x is not None and x.requires_grad]
    if trained:
        found = torch.autograd.grad(
            outputs, [inputs[i] for i in trained], [g.to(x.dtype) for g, x in zip(upstream, outputs, strict=True)]
        )
        rounded = [g.to(x.dtype).double() for g, x in zip(upstream, outputs, strict=True)]
        wanted = torch.autograd.grad(expected, [wide[i] for i in trained], rounded)
        for index, a, b in zip(trained, found, wanted, strict=True):
            assert a.dtype == inputs[index].dtype
            assert_near(a, b, dtype, f"gradient of input {index}")
    return outputs


def nested(weight: NF4) -> NF4:
    """With scales in 8 bits, as double quantisation has them, three blocks to a scale of scales."""
    generator = torch.Generator().manual_seed(0)
    blocks, device = len(weight.absmax), weight.device
    codes = torch.randint(256, (blocks,), generator=generator, dtype=torch.uint8).to(device)
    scales = torch.rand(-(-blocks // 3), generator=generator).to(device)
    levels = torch.linspace(-1, 1, 256, device=device)
    return replace(
        weight,
        absmax=codes,
        nested_absmax=scales,
        nested_levels=levels,
        nested_size=3,
        offset=torch.tensor(1.5, device=device),
    )
