from __future__ import annotations

import pytest
import torch
from kernel_checks import ODD_SIZES, assert_near, compare, draw

from keju.kernels import linear_logprob as module
from keju.kernels import logit_chunks
from keju.kernels.linear_logprob import linear_logprob

OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"scale": 0.5, "softcap": 2.0, "temperature": 1.3},
}


@pytest.fixture(params=["triton", "reference"], autouse=True)
def choice(request, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", request.param)


def inputs(count=7, hidden=5, vocab=300, *, bias=True, dtype=torch.float32, device="cpu"):
    target = torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(0)).to(device)
    states, weight, offset = (
        draw(*size, dtype=dtype, device=device) for size in [(count, hidden), (vocab, hidden), (vocab,)]
    )
    with torch.no_grad():
        weight *= (5 / max(5, hidden)) ** 0.5  # logits of a usual size, however many products they sum
    return states, weight, target, offset if bias else None


def obvious(hidden, weight, target, bias, temperature=1.0, scale=1.0, softcap=None):
    """Written out row by row."""
    logprobs, entropies = [], []
    for row, index in zip(hidden, target, strict=True):
        logits = weight @ row + (bias if bias is not None else 0)
        logits = logits * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        probabilities = torch.exp(logits / temperature) / torch.exp(logits / temperature).sum()
        logprobs.append(probabilities[index].log())
        entropies.append(-(probabilities * probabilities.log()).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize("max_elements", [None, 1, 2000], ids=["whole", "least", "pieces"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(max_elements, options, bias, device):
    """300 tokens: in one piece; in pieces of 128, 128 and 44; in pieces of 256 and 44."""
    found, _ = compare(
        lambda *a: linear_logprob(*a, **options, with_entropy=True, max_elements=max_elements),
        lambda *a: obvious(*a, **options),
        inputs(bias=bias, device=device),
        torch.float32,
    )
    assert found.dtype == torch.float32


@pytest.mark.parametrize("max_elements", [None, 1, 1000], ids=["whole", "row by row", "rows"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_frozen_head(max_elements, options, device):
    hidden, weight, target, bias = inputs(device=device)
    compare(
        lambda h: (
            linear_logprob(h, weight.detach(), target, bias.detach(), **options, max_elements=max_elements).logprobs
        ),
        lambda h: obvious(h, weight.detach().double(), target, bias.detach().double(), **options)[0],
        [hidden],
        torch.float32,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_float32(dtype, device):
    case = inputs(count=9, vocab=700, dtype=dtype, device=device)
    for max_elements in (None, 2500):
        found, entropy = compare(
            lambda *a, n=max_elements: linear_logprob(*a, with_entropy=True, max_elements=n), obvious, case, dtype
        )
        assert found.dtype == entropy.dtype == torch.float32


@pytest.mark.parametrize("count", ODD_SIZES)
def test_odd_sizes(count, device):
    case = inputs(count=count, hidden=count, vocab=count + 130, device=device)
    compare(
        lambda *a: linear_logprob(*a, with_entropy=True, max_elements=128 * count),
        lambda *a: module.reference(*a, with_entropy=True),
        case,
        torch.float32,
    )


def test_rows_with_gaps(device):
    hidden, weight = draw(9, 6, device=device, strided=True), draw(200, 6, device=device, strided=True)
    target = (torch.arange(18, device=device) * 10).view(9, 2)[:, 0]
    for max_elements in (None, 9 * 128):
        compare(
            lambda h, w, n=max_elements: linear_logprob(h, w, target, max_elements=n).logprobs,
            lambda h, w: obvious(h, w, target, None)[0],
            [hidden, weight],
            torch.float32,
        )


def test_only_what_is_trained_gets_a_gradient(device):
    """Bias alone, weight alone: the others are left out."""
    hidden, weight, target, bias = inputs(device=device)
    linear_logprob(hidden.detach(), weight.detach(), target, bias, max_elements=1).logprobs.sum().backward()
    alone = bias.grad.clone()
    linear_logprob(hidden, weight, target, bias, max_elements=1).logprobs.sum().backward()
    torch.testing.assert_close(bias.grad - alone, alone)
    assert hidden.grad is not None and weight.grad is not None


@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_logits_far_from_zero(shift, device):
    """Pieces whose logits are hundreds apart: nothing overflows and no gradient is NaN."""
    hidden, weight, target, bias = inputs(device=device)
    with torch.no_grad():
        bias[:128] += shift
    compare(
        lambda *a: linear_logprob(*a, max_elements=1).logprobs,
        lambda *a: obvious(*a)[0],
        [hidden, weight, target, bias],
        torch.float32,
    )


@pytest.mark.parametrize("max_elements", [None, 1])
def test_entropy_of_a_sure_prediction(max_elements, device):
    """Large logits, of which one stands out: the small entropy keeps its digits."""
    hidden, weight, target, bias = inputs(device=device)
    with torch.no_grad():
        bias += 80
        bias[::150] += 12
    _, entropy = obvious(*(x.double() if x.is_floating_point() else x for x in (hidden, weight, target, bias)))
    found = linear_logprob(hidden, weight, target, bias, with_entropy=True, max_elements=max_elements).entropy
    torch.testing.assert_close(found.double(), entropy, rtol=1e-4, atol=1e-6)


def test_entropy_alone(device):
    case = inputs(device=device)
    compare(lambda *a: linear_logprob(*a, with_entropy=True).entropy, lambda *a: obvious(*a)[1], case, torch.float32)


@pytest.mark.parametrize("max_elements", [None, 1])
def test_gradcheck(max_elements, device, monkeypatch):
    monkeypatch.setattr(module, "VOCAB_MULTIPLE", 4)
    hidden, weight, target, bias = inputs(count=3, vocab=11, hidden=2, dtype=torch.float64, device=device)
    options = {"softcap": 3.0, "temperature": 0.8, "max_elements": max_elements}
    torch.autograd.gradcheck(
        lambda h, w, b: tuple(linear_logprob(h, w, target, b, with_entropy=True, **options)), (hidden, weight, bias)
    )
    torch.autograd.gradcheck(
        lambda h: linear_logprob(h, weight.detach(), target, bias.detach(), **options).logprobs, (hidden,)
    )


def test_backward_twice(device):
    hidden, weight, target, bias = inputs(device=device)
    loss = linear_logprob(hidden, weight, target, bias).logprobs.sum()
    first = torch.autograd.grad(loss, [hidden, weight, bias], retain_graph=True)
    second = torch.autograd.grad(loss, [hidden, weight, bias])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_never_all_logits(device, monkeypatch):
    """Each piece of logits that is looked at stays within the limit, forward and backward."""
    seen = []
    for name in ("statistics", "gradient"):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda raw, *a, original=original, **k: seen.append(raw.numel()) or original(raw, *a, **k)
        )
    hidden, weight, target, bias = inputs(count=8, vocab=1000, device=device)
    linear_logprob(hidden, weight, target, bias, max_elements=2048).logprobs.sum().backward()
    linear_logprob(hidden, weight.detach(), target, max_elements=2048).logprobs.sum().backward()
    assert max(seen) <= 2048 and len(seen) == 2 * 4 + 2 * 4


def test_autocast(device):
    """As F.linear: the product in the dtype of autocast, gradients in that of the parameters."""
    hidden, weight, target, bias = inputs(device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = linear_logprob(hidden, weight, target, bias, max_elements=1).logprobs
    found.sum().backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32
    rounded = [tensor.detach().bfloat16() for tensor in (hidden, weight, bias)]
    expected = linear_logprob(rounded[0], rounded[1], target, rounded[2], max_elements=1).logprobs
    assert torch.equal(found, expected)
    assert not torch.equal(found, linear_logprob(hidden, weight, target, bias, max_elements=1).logprobs)


def test_no_rows(device):
    hidden, weight, _, _ = inputs(device=device)
    found = linear_logprob(hidden[:0], weight, torch.zeros(0, dtype=torch.int64, device=device))
    assert found.logprobs.shape == (0,)
    found.logprobs.sum().backward()
    assert not weight.grad.any()


def test_a_row_alone_and_the_last_token(device):
    hidden, weight, _, bias = inputs(count=1, device=device)
    for index in (0, 127, 128, 299):
        target = torch.tensor([index], device=device)
        found = linear_logprob(hidden, weight, target, bias, max_elements=1).logprobs
        assert_near(found, obvious(hidden, weight, target, bias)[0], torch.float32, str(index))


def test_wide_rows_loop(device, monkeypatch):
    """More columns than a program reads at once."""
    monkeypatch.setattr(logit_chunks, "BLOCK", 64)
    compare(lambda *a: linear_logprob(*a, with_entropy=True), obvious, inputs(device=device), torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.tensor([0, 9])}, "target holds 9, but the vocabulary has 9 tokens"),
        ({"target": torch.tensor([-100, 3])}, "target holds -100"),
        ({"target": torch.tensor([0])}, r"target must be \[2\]"),
        ({"target": torch.tensor([0, 1], dtype=torch.int32)}, "target must be torch.int64"),
        ({"hidden": torch.ones(1, 2, 3)}, r"hidden must be \[N, H\]"),
        ({"weight": torch.ones(9, 4)}, r"weight must be \[V, 3\]"),
        ({"bias": torch.ones(3)}, r"bias must be \[9\]"),
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"softcap": -1.0}, "softcap -1.0 must be above 0"),
        ({"max_elements": 0}, "max_elements 0 must be positive"),
    ],
)
def test_bad_input(change, message):
    whole = {"hidden": torch.ones(2, 3), "weight": torch.ones(9, 3), "target": torch.tensor([0, 8])}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**{**whole, **change})
