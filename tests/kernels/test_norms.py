"""rms_norm and layer_norm: the Triton kernels against float64, and their references against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import ODD_SIZES, compare, draw

from keju.kernels import layer_norm as layer_norm_module
from keju.kernels import rms_norm as rms_norm_module
from keju.kernels.layer_norm import layer_norm
from keju.kernels.rms_norm import rms_norm

pytestmark = pytest.mark.usefixtures("triton_kernels")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def plain_rms(x, weight=None, residual=None, *, offset=0.0, eps=1e-6):
    summed = x if residual is None else x + residual
    y = summed / (summed.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * (weight + offset)
    return y if residual is None else (y, summed)


def plain_layer(x, weight=None, bias=None, residual=None, *, eps=1e-5):
    summed = x if residual is None else x + residual
    y = (summed - summed.mean(-1, keepdim=True)) / (summed.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y if residual is None else (y, summed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ODD_SIZES)
def test_rms_norm(size, dtype, device):
    inputs = [draw(2, 5, size, dtype=dtype, device=device), draw(size, dtype=dtype, device=device)]
    # A row of one element is its own norm: its gradient is what eps leaves of it.
    compare(lambda *a: rms_norm(*a, eps=1e-2), lambda *a: plain_rms(*a, eps=1e-2), inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", ODD_SIZES)
def test_layer_norm(size, dtype, device):
    x, weight, bias = (draw(*shape, dtype=dtype, device=device) for shape in [(2, 5, size), (size,), (size,)])
    # A row of one element is its own mean: there is nothing to divide by but eps.
    compare(lambda *a: layer_norm(*a, eps=1e-2), lambda *a: plain_layer(*a, eps=1e-2), [x, weight, bias], dtype)


@pytest.mark.parametrize("op, plain", [(rms_norm, plain_rms), (layer_norm, plain_layer)], ids=["rms", "layer"])
@pytest.mark.parametrize("rows", [1, 64, 127])
@pytest.mark.parametrize("strided", [False, True], ids=["", "strided"])
def test_residual(op, plain, rows, strided, device):
    x, residual = (draw(rows, 65, device=device, seed=seed, strided=strided) for seed in (0, 1))
    weight = draw(65, device=device)
    compare(
        lambda x, w, r: op(x, w, residual=r), lambda x, w, r: plain(x, w, residual=r), [x, weight, residual], x.dtype
    )


@pytest.mark.parametrize("op, plain", [(rms_norm, plain_rms), (layer_norm, plain_layer)], ids=["rms", "layer"])
def test_weight_with_gaps(op, plain, device):
    compare(op, plain, [draw(7, 100, device=device), draw(100, 2, device=device)[:, 0]], torch.float32)


@pytest.mark.parametrize("op, plain", [(rms_norm, plain_rms), (layer_norm, plain_layer)], ids=["rms", "layer"])
def test_without_weight(op, plain, device):
    compare(op, plain, [draw(7, 100, device=device)], torch.float32)


def test_layer_norm_without_bias(device):
    compare(layer_norm, plain_layer, [draw(7, 100, device=device), draw(100, device=device)], torch.float32)


def test_only_one_output_of_a_fused_addition_is_used(device):
    """The gradient of the other one is absent, not zero-filled."""
    for index in (0, 1):
        compare(
            lambda x, w, r, index=index: rms_norm(x, w, residual=r)[index] + 0 * w.sum(),
            lambda x, w, r, index=index: plain_rms(x, w, residual=r)[index] + 0 * w.sum(),
            [draw(9, 33, device=device), draw(33, device=device), draw(9, 33, device=device, seed=5)],
            torch.float32,
        )


def test_a_long_row_and_many_rows(device):
    """More rows than programs, and one row wider than a tile."""
    compare(rms_norm, plain_rms, [draw(50, 300, device=device), draw(300, device=device)], torch.float32)
    compare(rms_norm, plain_rms, [draw(3, 5000, device=device), draw(5000, device=device)], torch.float32)


def test_gemma_adds_one_in_float32(device):
    x, weight = draw(6, 64, dtype=torch.bfloat16, device=device), draw(64, dtype=torch.bfloat16, device=device)
    found = rms_norm(x, weight, offset=1.0)
    wide = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6) * (weight.float() + 1)
    torch.testing.assert_close(found, wide.to(torch.bfloat16), rtol=1e-2, atol=1e-5)
    compare(lambda *a: rms_norm(*a, offset=1.0), lambda *a: plain_rms(*a, offset=1.0), [x, weight], x.dtype)


def test_llama_rounds_before_the_weight(device):
    """As transformers' LlamaRMSNorm: without the float32 weight the result is a bfloat16 number, exactly."""
    x = draw(40, 64, dtype=torch.bfloat16, device=device)
    weight = draw(64, device=device)
    found = rms_norm(x, weight, casting="llama")
    assert found.dtype == torch.float32
    assert torch.equal(found, weight * (found / weight).to(torch.bfloat16))
    compare(lambda *a: rms_norm(*a, casting="llama"), plain_rms, [x, weight], torch.bfloat16)
    assert rms_norm(x, weight, casting="gemma").dtype == torch.bfloat16


def test_residual_of_another_dtype(device):
    """Under autocast the layers' results are bfloat16 and the residual stream float32."""
    x, residual = draw(5, 64, dtype=torch.bfloat16, device=device), draw(5, 64, device=device, seed=3)
    y, summed = compare(
        lambda x, r: rms_norm(x, residual=r), lambda x, r: plain_rms(x, residual=r), [x, residual], torch.bfloat16
    )
    assert y.dtype == summed.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_no_rows(shape, device):
    x, weight = draw(*shape, device=device), draw(8, device=device)
    y = rms_norm(x, weight)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape and not weight.grad.any()


def test_gradcheck(device):
    x, residual, weight, bias = (
        draw(*shape, dtype=torch.float64, device=device, seed=seed)
        for seed, shape in enumerate([(3, 5), (3, 5), (5,), (5,)])
    )
    torch.autograd.gradcheck(lambda x, r, w: rms_norm(x, w, residual=r, offset=1.0), (x, residual, weight))
    torch.autograd.gradcheck(lambda x, r, w, b: layer_norm(x, w, b, residual=r), (x, residual, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_references_are_torch(dtype, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "reference")
    x, weight, bias = draw(4, 10, dtype=dtype), draw(10, dtype=dtype), draw(10, dtype=dtype)
    assert torch.equal(rms_norm(x, weight), F.rms_norm(x, (10,), weight, 1e-6))
    assert torch.equal(layer_norm(x, weight, bias), F.layer_norm(x, (10,), weight, bias, 1e-5))
    compare(
        lambda *a: rms_norm_module.reference(*a, offset=1.0), lambda *a: plain_rms(*a, offset=1.0), [x, weight], dtype
    )
    y, summed = layer_norm_module.reference(x, residual=x)
    assert torch.equal(summed, 2 * x) and y.shape == x.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(3)}, r"weight must be \[4\], not \[3\]"),
        ({"residual": torch.ones(1, 4)}, r"residual must be \[2, 4\]"),
        ({"x": torch.ones(2, 4, dtype=torch.int64)}, "x must be floating point, not torch.int64"),
        ({"weight": torch.ones(4, device="meta")}, "weight is on meta, but x on cpu"),
        ({"casting": "t5"}, 'casting must be "llama" or "gemma"'),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(**{"x": torch.ones(2, 4), "weight": torch.ones(4), **change})


def test_a_bias_needs_a_weight():
    with pytest.raises(ValueError, match="bias is given without weight"):
        layer_norm(torch.ones(2, 4), None, torch.ones(4))
