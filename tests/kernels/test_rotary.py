"""rotary in the layouts of Llama, GLM-4 and ChatGLM, against the turning of each pair by itself in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import compare, draw

from keju.kernels.rotary import rotary

pytestmark = pytest.mark.usefixtures("triton_kernels")

# (head_dim, angles, group): half-split, interleaved, the two blocks of ChatGLM, and parts of a head of each
LAYOUTS = {
    "half": (16, 8, 8),
    "interleaved": (16, 8, 1),
    "blocks": (16, 8, 4),
    "part": (20, 5, 5),
    "part-interleaved": (20, 5, 1),
    "part-blocks": (20, 6, 3),
    "one": (2, 1, 1),
}


def tables(batch, time, angles, device, dtype=torch.float64):
    positions = torch.randint(0, 50, (batch, time, 1), generator=torch.Generator().manual_seed(3)).double()
    angle = positions / 10.0 ** torch.linspace(0, 2, angles, dtype=torch.float64)
    return angle.cos().to(dtype).to(device), angle.sin().to(dtype).to(device)


def obvious(states, cos, sin, group):
    turned = states.clone()
    for index in range(cos.shape[-1]):
        first = index // group * 2 * group + index % group
        second = first + group
        c, s = cos[:, None, :, index], sin[:, None, :, index]
        turned[..., first] = states[..., first] * c - states[..., second] * s
        turned[..., second] = states[..., second] * c + states[..., first] * s
    return turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, device):
    head_dim, angles, group = LAYOUTS[layout]
    query, key = (draw(2, heads, 7, head_dim, dtype=dtype, device=device) for heads in (3, 1))
    cos, sin = tables(2, 7, angles, device, dtype)
    wide = cos.double(), sin.double()
    compare(
        lambda q, k: rotary(q, k, cos, sin, group=group),
        lambda q, k: (obvious(q, *wide, group), obvious(k, *wide, group)),
        [query, key],
        dtype,
    )


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_projections_as_the_models_hand_them_over(in_place, batch, device):
    """[B, T, heads, D] seen as [B, heads, T, D], query and key views of one projection, tables of one row for all."""
    heads, kv_heads, head_dim = 4, 2, 6
    packed = draw(batch, 5, (heads + kv_heads) * head_dim, device=device)
    cos, sin = (table.float() for table in tables(1, 5, 3, device))

    def op(packed, turn):
        query, key = packed.unflatten(-1, (-1, head_dim)).transpose(1, 2).split([heads, kv_heads], dim=1)
        return turn(query, key)

    compare(
        lambda p: op(p, lambda q, k: rotary(q, k, cos, sin, in_place_backward=in_place)),
        lambda p: op(
            p, lambda q, k: (obvious(q, cos.double(), sin.double(), 3), obvious(k, cos.double(), sin.double(), 3))
        ),
        [packed],
        torch.float32,
    )


def test_upstream_gradients_stay_as_they_are(device):
    query, key = draw(1, 2, 3, 4, device=device), draw(1, 1, 3, 4, device=device)
    cos, sin = (table.float() for table in tables(1, 3, 2, device))
    upstream = [torch.ones_like(query), torch.ones_like(key)]
    torch.autograd.grad(rotary(query, key, cos, sin), [query, key], upstream)
    assert all((gradient == 1).all() for gradient in upstream)


def test_tables_of_other_strides(device):
    """transformers hands over tables whose halves repeat; cos may be a view and sin not."""
    query, key = draw(2, 2, 3, 4, device=device), draw(2, 1, 3, 4, device=device)
    cos, sin = (table.float() for table in tables(2, 3, 2, device))
    expected = rotary(query, key, cos, sin)
    doubled = torch.cat([cos, cos], dim=-1)[..., :2]
    for found, wanted in zip(rotary(query, key, doubled, sin), expected, strict=True):
        assert torch.equal(found, wanted)
    spread = torch.stack([cos, cos], dim=-1)[..., 0], torch.stack([sin, sin], dim=-1)[..., 0]
    assert torch.equal(rotary(query, key, *spread)[0], expected[0])


def test_no_tokens(device):
    query, key = draw(1, 2, 0, 4, device=device), draw(1, 1, 0, 4, device=device)
    table = torch.zeros(1, 0, 2, device=device)
    assert rotary(query, key, table, table)[0].shape == query.shape


def test_gradcheck(device):
    query, key = (
        draw(1, 2, 3, 6, dtype=torch.float64, device=device),
        draw(1, 1, 3, 6, dtype=torch.float64, device=device),
    )
    cos, sin = tables(1, 3, 2, device)
    torch.autograd.gradcheck(lambda q, k: rotary(q, k, cos, sin, group=1), (query, key))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference(layout, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "reference")
    head_dim, angles, group = LAYOUTS[layout]
    cos, sin = tables(1, 4, angles, "cpu")
    compare(
        lambda q, k: rotary(q, k, cos, sin, group=group),
        lambda q, k: (obvious(q, cos, sin, group), obvious(k, cos, sin, group)),
        [draw(2, 3, 4, head_dim, dtype=torch.float64), draw(2, 1, 4, head_dim, dtype=torch.float64)],
        torch.float64,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.ones(1, 1, 4, 4)}, "must be 4-D and differ in heads only"),
        ({"query": torch.ones(2, 3, 4)}, "must be 4-D"),
        ({"cos": torch.ones(1, 2, 2)}, r"cos \[1, 2, 2\] and sin \[1, 3, 2\]"),
        ({"cos": torch.ones(1, 3, 3), "sin": torch.ones(1, 3, 3)}, "3 angles, too many for heads of 4"),
        ({"group": 3}, "group 3 must divide the 2 angles"),
    ],
)
def test_bad_input(change, message):
    table = torch.ones(1, 3, 2)
    whole = {"query": torch.ones(1, 2, 3, 4), "key": torch.ones(1, 1, 3, 4), "cos": table, "sin": table}
    with pytest.raises(ValueError, match=message):
        rotary(**{**whole, **change})
