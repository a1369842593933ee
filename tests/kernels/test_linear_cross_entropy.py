from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import ODD_SIZES, compare, draw

from keju.kernels import linear_cross_entropy as module
from keju.kernels.linear_cross_entropy import linear_cross_entropy

OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.02},
    "all": {"label_smoothing": 0.2, "z_loss": 0.01, "softcap": 2.0, "scale": 0.7},
}


@pytest.fixture(params=["triton", "reference"], autouse=True)
def choice(request, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", request.param)


def inputs(count=7, hidden=5, vocab=300, *, bias=True, dtype=torch.float32, device="cpu"):
    target = torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(0)).to(device)
    draws = [draw(*shape, dtype=dtype, device=device) for shape in [(count, hidden), (vocab, hidden), (vocab,)]]
    return draws[0], draws[1], target, draws[2] if bias else None


def obvious(hidden, weight, target, bias, label_smoothing=0.0, z_loss=0.0, scale=1.0, softcap=None, reduction="mean"):
    """Row by row, against the smoothed distribution of targets."""
    losses = []
    for row, index in zip(hidden, target, strict=True):
        logits = (weight @ row + (bias if bias is not None else 0)) * scale
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        wanted = torch.full_like(logits, label_smoothing / len(logits))
        wanted[index] += 1 - label_smoothing
        normaliser = logits.exp().sum().log()
        losses.append(-(wanted * (logits - normaliser)).sum() + z_loss * normaliser**2)
    return getattr(torch.stack(losses), reduction)()


@pytest.mark.parametrize("recompute", [False, True], ids=["in the forward pass", "recomputed"])
@pytest.mark.parametrize("max_elements", [None, 1, 700], ids=["whole", "least", "pieces"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_values_and_gradients(recompute, max_elements, options, device):
    for reduction in ("mean", "sum"):
        every = {**options, "reduction": reduction}
        compare(
            lambda *a, every=every: linear_cross_entropy(*a, **every, recompute=recompute, max_elements=max_elements),
            lambda *a, every=every: obvious(*a, **every),
            inputs(bias=reduction == "sum", device=device),
            torch.float32,
        )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_float32(dtype, recompute, device):
    """The gradient of the weight is summed over pieces in float32."""
    (found,) = compare(
        lambda *a: linear_cross_entropy(*a, recompute=recompute, max_elements=700),
        obvious,
        inputs(count=9, dtype=dtype, device=device),
        dtype,
    )
    assert found.dtype == torch.float32


@pytest.mark.parametrize("count", ODD_SIZES)
def test_odd_sizes(count, device):
    case = inputs(count=count, hidden=count, vocab=count + 1, device=device)
    compare(lambda *a: linear_cross_entropy(*a, max_elements=10 * count), module.reference, case, torch.float32)


@pytest.mark.parametrize("trained", [0, 1, 3], ids=["hidden", "weight", "bias"])
def test_one_trained_input(trained, device):
    case = [x if i in (trained, 2) else x.detach() for i, x in enumerate(inputs(device=device))]
    compare(lambda *a: linear_cross_entropy(*a, max_elements=700), obvious, case, torch.float32)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradcheck(recompute, device):
    hidden, weight, target, bias = inputs(count=3, vocab=11, hidden=2, dtype=torch.float64, device=device)
    torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, target, b, **OPTIONS["all"], recompute=recompute, max_elements=11),
        (hidden, weight, bias),
    )


def test_no_gradient_is_made_where_none_is_asked_for(device, monkeypatch):
    case = inputs(device=device)
    monkeypatch.setattr(module, "gradient", None)
    with torch.no_grad():
        found = linear_cross_entropy(*case)
    torch.testing.assert_close(linear_cross_entropy(*(x.detach() for x in case)), found)
    torch.testing.assert_close(found, obvious(*inputs(device=device)))


def test_backward_twice(device):
    hidden, weight, target, bias = inputs(device=device)
    loss = linear_cross_entropy(hidden, weight, target, bias)
    first = torch.autograd.grad(loss, [hidden, weight, bias], retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, [hidden, weight, bias])))


def test_autocast(device):
    hidden, weight, target, bias = inputs(device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target, bias, max_elements=700)
    loss.backward()
    assert loss.dtype == weight.grad.dtype == hidden.grad.dtype == torch.float32
    logits = F.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()
    torch.testing.assert_close(loss, F.cross_entropy(logits, target), rtol=1e-3, atol=1e-3)


def test_targets_with_gaps(device):
    hidden, weight, target, bias = inputs(device=device)
    spread = torch.stack([target, torch.zeros_like(target)], dim=1)[:, 0]
    compare(linear_cross_entropy, obvious, [hidden, weight, spread, bias], torch.float32)


def test_no_rows(device):
    hidden, weight, target, _ = inputs(device=device)
    loss = linear_cross_entropy(hidden[:0], weight, target[:0])
    loss.backward()
    assert loss == 0 and not weight.grad.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 9])}, "target holds 9, but the vocabulary has 9 tokens"),
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0 must be in \[0, 1\)"),
        ({"reduction": "none"}, 'reduction must be "mean" or "sum"'),
    ],
)
def test_bad_input(change, message):
    whole = {"hidden": torch.ones(2, 3), "weight": torch.ones(9, 3), "target": torch.tensor([0, 8])}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**whole, **change})
