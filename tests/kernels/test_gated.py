"""gelu, swiglu and geglu against the formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import ODD_SIZES, compare, draw
from transformers.activations import ACT2FN

from keju.kernels.gelu import gelu
from keju.kernels.gelu_forms import FORMS
from keju.kernels.glu import geglu, glu, swiglu

pytestmark = [
    pytest.mark.usefixtures("triton_kernels"),
    # exp overflows to infinity far from zero, as it should: 1 / (1 + inf) = 0. numpy, which interprets, remarks on it.
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def plain(x, form):
    if form == "silu":
        return x / (1 + torch.exp(-x))
    if form == "quick":
        return x / (1 + torch.exp(-1.702 * x))
    if form == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["exact", "tanh", "quick"])
def test_gelu(form, dtype, device):
    for size in ODD_SIZES:
        compare(lambda x: gelu(x, form), lambda x: plain(x, form), [draw(3, size, dtype=dtype, device=device)], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strided", [False, True], ids=["", "strided"])
def test_glu(form, dtype, strided, device):
    for size in ODD_SIZES:
        gate, up = (draw(2, 3, size, dtype=dtype, device=device, seed=seed, strided=strided) for seed in (0, 1))
        compare(lambda g, u: glu(g, u, form), lambda g, u: plain(g, form) * u, [gate, up], dtype)


@pytest.mark.parametrize("form", FORMS)
def test_both_in_one_tensor(form, device):
    """The gradient is written into one tensor as well."""

    def obvious(packed):
        gate, up = packed.chunk(2, dim=-1)
        return plain(gate, form) * up

    compare(lambda packed: glu(packed, form=form), obvious, [draw(4, 2 * 1030, device=device)], torch.float32)


def test_names(device):
    gate, up = draw(5, 9, device=device), draw(5, 9, device=device, seed=1)
    torch.testing.assert_close(swiglu(gate, up), plain(gate, "silu") * up)
    torch.testing.assert_close(geglu(gate, up), plain(gate, "exact") * up)


@pytest.mark.parametrize(
    ("form", "name"),
    [("exact", "gelu"), ("tanh", "gelu_new"), ("tanh", "gelu_fast"), ("quick", "quick_gelu"), ("silu", "silu")],
)
def test_forms_are_those_of_transformers(form, name, device):
    x = torch.linspace(-12, 12, 400, device=device)
    found = glu(x, torch.ones_like(x), form)
    torch.testing.assert_close(found, ACT2FN[name](x))
    if form != "silu":
        torch.testing.assert_close(gelu(x, form), ACT2FN[name](x))


@pytest.mark.parametrize("form", FORMS)
def test_far_from_zero(form, device):
    """No overflow: 0 on the left, x and slope 1 on the right."""
    x = torch.tensor([-1e4, -200.0, 200.0, 1e4], device=device, requires_grad=True)
    y = glu(x, torch.ones_like(x), form)
    y.sum().backward()
    torch.testing.assert_close(y, x.clamp(min=0))
    torch.testing.assert_close(x.grad, (x > 0).float())


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form, device):
    gate, up = (draw(2, 5, dtype=torch.float64, device=device, seed=seed) for seed in (0, 1))
    torch.autograd.gradcheck(lambda g, u: glu(g, u, form), (gate, up))
    if form != "silu":
        torch.autograd.gradcheck(lambda g: gelu(g, form), (gate,))


def test_nothing_to_do(device):
    assert gelu(draw(0, 4, device=device)).shape == (0, 4)
    gate = draw(0, 4, device=device)
    swiglu(gate, gate).sum().backward()
    assert gate.grad.shape == (0, 4)


@pytest.mark.parametrize("form", FORMS)
def test_the_reference(form, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "reference")
    gate, up = (draw(3, 10, dtype=torch.float64, seed=seed) for seed in (0, 1))
    compare(lambda g, u: glu(g, u, form), lambda g, u: plain(g, form) * u, [gate, up], torch.float64)
    compare(lambda g: glu(g, form=form), lambda g: plain(g[:, :5], form) * g[:, 5:], [gate], torch.float64)


def test_bad_input():
    x = torch.ones(2, 3)
    for call, message in [
        (lambda: gelu(x, "silu"), "form 'silu' is none of exact, tanh, quick"),
        (lambda: gelu(x.int()), "x must be floating point"),
        (lambda: swiglu(x), "must hold two halves"),
        (lambda: swiglu(x, torch.ones(2, 4)), r"up must be \[2, 3\], not \[2, 4\]"),
        (lambda: swiglu(x, x.half()), "up is torch.float16, but gate torch.float32"),
        (lambda: geglu(x, x, "relu"), "form 'relu' is none of"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
