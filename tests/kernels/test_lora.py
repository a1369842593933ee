"""lora_linear over plain and NF4 weights against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_checks import ODD_SIZES, compare, draw, nested

from keju.kernels import lora as module
from keju.kernels.lora import LoraLinear, lora_linear
from keju.kernels.nf4 import dequantize_nf4, quantize_nf4

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["triton", "reference"], autouse=True)
def choice(request, monkeypatch) -> str:
    monkeypatch.setenv("KEJU_KERNELS", request.param)
    return request.param


def base(out_size, in_size, quantised, *, dtype=torch.float32, device="cpu", seed=0):
    """(what lora_linear gets, the same as a plain matrix in float64)"""
    weight = draw(out_size, in_size, dtype=dtype, device=device, seed=seed).detach() / in_size**0.5
    if not quantised:
        return weight, weight.double()
    packed = quantize_nf4(weight)
    return packed, dequantize_nf4(packed, dtype).double()


def check(sizes, x, rank, quantised, dtype=torch.float32, *, with_bias=False, adapter_dtype=None):
    """Layers of `sizes` over one input."""
    device, in_size = x.device, x.shape[-1]
    weights = [base(size, in_size, quantised, dtype=dtype, device=device, seed=i) for i, size in enumerate(sizes)]
    biases = [draw(size, dtype=dtype, device=device, seed=9).detach() if with_bias else None for size in sizes]
    adapters = [
        draw(*shape, dtype=adapter_dtype or dtype, device=device, seed=7)
        for size in sizes
        for shape in [(rank, in_size), (size, rank)]
    ]

    def layers(chosen, adapters, wide):
        pairs = zip(adapters[0::2], adapters[1::2], strict=True)
        for (a, b), weight, bias in zip(pairs, weights, biases, strict=True):
            bias = bias.double() if wide and bias is not None else bias
            yield LoraLinear(weight[chosen], a, b, 0.3, bias)

    def obvious(x, *adapters):
        return [
            x @ layer.weight.t() + (0 if layer.bias is None else layer.bias) + 0.3 * ((x @ layer.a.t()) @ layer.b.t())
            for layer in layers(1, adapters, wide=True)
        ]

    return compare(lambda x, *a: lora_linear(x, *layers(0, a, wide=False)), obvious, [x, *adapters], dtype)


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "nf4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_query_key_value(dtype, quantised, device):
    outputs = check([48, 16, 16], draw(2, 5, 32, dtype=dtype, device=device), 4, quantised, dtype)
    assert all(output.dtype == dtype for output in outputs)


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "nf4"])
@pytest.mark.parametrize("size", ODD_SIZES)
def test_odd_sizes(size, quantised, device):
    check([size + 2], draw(size, size, device=device), 3, quantised, with_bias=True)


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "nf4"])
def test_adapters_in_float32(quantised, device):
    """As PEFT has them over a base in half precision: their products stay float32."""
    dtype = torch.bfloat16
    check([20, 12], draw(9, 40, dtype=dtype, device=device), 3, quantised, dtype, adapter_dtype=torch.float32)


def test_rows_with_gaps(device):
    check([20], draw(9, 40, device=device, strided=True), 3, True)


def test_double_quantisation(device):
    """Scales in 8 bits are read in the kernel, too."""
    packed = nested(quantize_nf4(draw(24, 64, device=device)))
    x, a, b = draw(17, 64, device=device), draw(3, 64, device=device), draw(24, 3, device=device)
    wide = dequantize_nf4(packed, torch.float32).double()
    compare(
        lambda x, a, b: lora_linear(x, LoraLinear(packed, a, b, 2.0))[0],
        lambda x, a, b: x @ wide.t() + 2.0 * (x @ a.t()) @ b.t(),
        [x, a, b],
        torch.float32,
    )


@pytest.mark.parametrize("choice", ["triton"], indirect=True)
def test_the_matrix_never_exists(device, monkeypatch):
    monkeypatch.setattr(module, "dequantize_nf4", None)
    weight = quantize_nf4(draw(24, 64, device=device))
    x, a, b = draw(17, 64, device=device), draw(3, 64, device=device), draw(24, 3, device=device)
    lora_linear(x, LoraLinear(weight, a, b, 2.0))[0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("quantised", [False, True], ids=["plain", "nf4"])
def test_an_output_that_is_not_used(quantised, device):
    """Its adapters get no gradient, and those of the other are right."""
    x, weight = draw(4, 8, device=device), base(6, 8, quantised, device=device)[0]
    layers = [LoraLinear(weight, draw(2, 8, device=device, seed=i), draw(6, 2, device=device), 1.0) for i in range(2)]
    lora_linear(x, *layers)[1].sum().backward()
    alone = draw(4, 8, device=device)
    lora_linear(alone, layers[1])[0].sum().backward()
    assert layers[0].a.grad is None
    torch.testing.assert_close(x.grad, alone.grad)


def test_the_base_gets_no_gradient(device):
    x, weight = draw(4, 8, device=device), draw(6, 8, device=device)
    lora_linear(x, LoraLinear(weight, draw(2, 8, device=device), draw(6, 2, device=device), 1.0))[0].sum().backward()
    assert weight.grad is None and x.grad is not None


def test_no_rows(device):
    x = draw(0, 8, device=device)
    a, b = draw(2, 8, device=device), draw(6, 2, device=device)
    for weight in (base(6, 8, True, device=device)[0], base(6, 8, False, device=device)[0]):
        (found,) = lora_linear(x, LoraLinear(weight, a, b, 1.0))
        assert found.shape == (0, 6)
        found.sum().backward()
    assert not a.grad.any()


def test_autocast(device):
    """As F.linear: states, base and adapters in the dtype of autocast, gradients in that of the parameters."""
    x, a, b = draw(9, 32, device=device), draw(3, 32, device=device), draw(20, 3, device=device)
    for quantised in (False, True):
        weight, wide = base(20, 32, quantised, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            (found,) = lora_linear(x, LoraLinear(weight, a, b, 0.5))
        found.float().sum().backward()
        assert found.dtype == torch.bfloat16 and a.grad.dtype == x.grad.dtype == torch.float32
        expected = x.double() @ wide.t() + 0.5 * x.double() @ a.double().t() @ b.double().t()
        torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)


def test_gradcheck(device):
    x, a, b = (
        draw(*shape, dtype=torch.float64, device=device, seed=i) for i, shape in enumerate([(3, 4), (2, 4), (5, 2)])
    )
    weight = draw(5, 4, dtype=torch.float64, device=device).detach()
    for chosen in (weight, replace(quantize_nf4(weight), dtype=torch.float64)):
        torch.autograd.gradcheck(
            lambda x, a, b, w=chosen: lora_linear(x, LoraLinear(w, a, b, 0.7), LoraLinear(w, a, b, 0.2)), (x, a, b)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(2, 5)}, r"a must be \[rank, 8\], not \[2, 5\]"),
        ({"b": torch.ones(6, 3)}, r"b must be \[6, 2\], not \[6, 3\]"),
        ({"weight": torch.ones(6, 7)}, r"x must be \[..., 7\], not \[4, 8\]"),
        ({"weight": torch.ones(6, 8, dtype=torch.float16)}, "weight is torch.float16, but x torch.float32"),
        ({"weight": torch.ones(6, 8, device="meta")}, "weight is on meta, but x on cpu"),
        ({"bias": torch.ones(3)}, r"bias must be \[6\]"),
    ],
)
def test_bad_input(change, message):
    layer = LoraLinear(torch.ones(6, 8), torch.ones(2, 8), torch.ones(6, 2), 1.0)
    with pytest.raises(ValueError, match=message):
        lora_linear(torch.ones(4, 8), layer._replace(**change))
    with pytest.raises(ValueError, match="layers are missing"):
        lora_linear(torch.ones(4, 8))
