"""NF4 against bitsandbytes itself, and against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_checks import ODD_SIZES, draw, nested

from keju.kernels.nf4 import LEVELS, NF4, dequantize_nf4, quantize_nf4

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["triton", "reference"])
def choice(request, monkeypatch) -> str:
    monkeypatch.setenv("KEJU_KERNELS", request.param)
    return request.param


def obvious(weight: NF4) -> torch.Tensor:
    """Element by element."""
    values = []
    for index in range(weight.numel()):
        byte = weight.packed.reshape(-1)[index // 2].item()
        block = index // weight.block_size
        scale = weight.absmax[block].item()
        if weight.nested_absmax is not None:
            scale = weight.nested_levels[scale] * weight.nested_absmax[block // weight.nested_size] + weight.offset
        values.append(LEVELS[byte & 15 if index % 2 else byte >> 4] * float(scale))
    return torch.tensor(values).view(weight.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("size", ODD_SIZES)
def test_elements(size, is_nested, dtype, choice, device):
    weight = quantize_nf4(draw(3, size, dtype=dtype, device=device))
    weight = nested(weight) if is_nested else weight
    found = dequantize_nf4(weight)
    assert found.dtype == dtype and found.device == weight.device
    torch.testing.assert_close(found.cpu(), obvious(weight).to(dtype))
    assert dequantize_nf4(weight, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("shape", [(8, 128), (5, 65), (100, 700)], ids=str)
@pytest.mark.parametrize("block_size", [64, 128])
def test_bitsandbytes(shape, compress, block_size, choice):
    """Its bytes give the same matrix here as there; so do ours there."""
    functional = pytest.importorskip("bitsandbytes.functional")
    original = draw(*shape).detach()
    packed, state = functional.quantize_4bit(
        original, blocksize=block_size, compress_statistics=compress, quant_type="nf4"
    )
    expected = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(dequantize_nf4(NF4.from_bitsandbytes(packed, state)), expected)
    if not compress:
        ours = quantize_nf4(original, block_size)
        torch.testing.assert_close(ours.absmax, state.absmax)
        torch.testing.assert_close(dequantize_nf4(ours), expected)
    _, other = functional.quantize_4bit(original, quant_type="fp4")
    with pytest.raises(ValueError, match="quantised to fp4"):
        NF4.from_bitsandbytes(packed, other)


def test_nearest_level(device):
    """No level would be nearer than the one that is chosen; zeros stay zeros."""
    original = draw(40, 64, device=device).detach()
    original[3] = 0
    weight = quantize_nf4(original)
    scales = weight.absmax[:, None, None]
    levels = torch.tensor(LEVELS, device=device)
    least = (original[:, :, None] - levels * scales).abs().amin(2)
    torch.testing.assert_close((dequantize_nf4(weight) - original).abs(), least)
    assert not dequantize_nf4(weight)[3].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed": torch.zeros(3, dtype=torch.uint8)}, "packed must hold 128 elements"),
        ({"packed": torch.zeros(64)}, "packed must hold 128 elements, two a uint8, not torch.float32"),
        ({"absmax": torch.ones(5)}, "absmax must hold 2 scales, not 5"),
        ({"absmax": torch.ones(2, dtype=torch.uint8)}, "absmax is torch.uint8"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        dequantize_nf4(replace(quantize_nf4(torch.ones(2, 64)), **change))


def test_integers_cannot_be_quantised():
    with pytest.raises(ValueError, match="weight must be floating point"):
        quantize_nf4(torch.ones(2, 2, dtype=torch.int64))
