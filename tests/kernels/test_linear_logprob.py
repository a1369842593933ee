from __future__ import annotations

import pytest
import torch

from keju.kernels.linear_logprob import linear_logprob


def inputs(count=7, hidden=5, vocab=11, *, bias=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()  # noqa: E731
    target = torch.randint(vocab, (count,), generator=generator)
    return draw(count, hidden), draw(vocab, hidden), target, draw(vocab) if bias else None


def obvious(hidden, weight, target, bias, temperature=1.0, scale=1.0, softcap=None):
    """Written out row by row in float64."""
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


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 100])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"scale": 0.5, "softcap": 2.0}], ids=["plain", "temperature", "softcap"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(chunk_size, options, bias):
    ours, theirs = inputs(bias=bias), inputs(bias=bias)
    result = linear_logprob(*ours, **options, with_entropy=True, chunk_size=chunk_size)
    assert result.logprobs.dtype == torch.float32
    logprobs, entropy = obvious(*theirs, **options)
    torch.testing.assert_close(result.logprobs.double(), logprobs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.entropy.double(), entropy, rtol=1e-5, atol=1e-6)

    weights = torch.linspace(-1, 2, 7)
    ((result.logprobs + 0.3 * result.entropy) * weights).sum().backward()
    ((logprobs + 0.3 * entropy) * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        if b is not None and b.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_half_precision_input_gives_float32():
    hidden, weight, target, _ = inputs(dtype=torch.bfloat16)
    result = linear_logprob(hidden, weight, target)
    assert result.logprobs.dtype == torch.float32 and result.entropy is None
    expected, _ = obvious(hidden.double(), weight.double(), target, None)
    torch.testing.assert_close(result.logprobs.double(), expected, rtol=0.05, atol=0.05)


def test_no_rows():
    hidden, weight, _, _ = inputs()
    assert linear_logprob(hidden[:0], weight, torch.zeros(0, dtype=torch.int64)).logprobs.shape == (0,)
