from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.kernels.column_mask_attention import CHUNK, ColumnMask, column_mask_attention


def random_mask(length: int, generator: torch.Generator) -> ColumnMask:
    """Any intervals in which each query at least sees itself."""
    index = torch.arange(length)
    begin = index - torch.randint(0, 3, (length,), generator=generator) * torch.randint(
        0, length, (length,), generator=generator
    )
    end = index + 1 + torch.randint(0, length, (length,), generator=generator)
    return ColumnMask(begin.clamp(min=0), end.clamp(max=length))


def obvious(query, key, value, mask: ColumnMask, scale=None, alibi=None):
    """Softmax over exactly the visible keys, query by query, in float64."""
    heads, length, size = query.shape[1:]
    groups = heads // key.shape[1]
    scale = scale or size**-0.5
    rows = []
    for head in range(heads):
        for q in range(length):
            seen = [k for k in range(length) if mask.visible_from[k] <= q < mask.visible_until[k]]
            scores = key[0, head // groups, seen] @ query[0, head, q] * scale
            if alibi is not None:
                slopes, positions = alibi
                scores = scores + slopes[head] * (positions[seen] - positions[q])
            rows.append(torch.softmax(scores, dim=0) @ value[0, head // groups, seen])
    return torch.stack(rows).view(1, heads, length, -1)


def draw(length, heads, kv_heads, size, generator, dtype=torch.float64):
    shapes = [(1, heads, length, size), (1, kv_heads, length, size), (1, kv_heads, length, size)]
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.integers(0, 10**6))
def test_random_masks(length, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(length, generator)
    ours = draw(length, *heads, 4, generator)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    result, expected = column_mask_attention(*ours, mask), obvious(*theirs, mask)
    torch.testing.assert_close(result, expected)
    weights = torch.randn(result.shape, generator=generator, dtype=result.dtype)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_meet_without_a_seam(length):
    generator = torch.Generator().manual_seed(length)
    mask = random_mask(length, generator)
    query, key, value = draw(length, 1, 1, 2, generator)
    torch.testing.assert_close(
        column_mask_attention(query, key, value, mask, scale=0.3), obvious(query, key, value, mask, scale=0.3)
    )


@pytest.mark.parametrize(("length", "heads"), [(9, (3, 1)), (CHUNK + 3, (2, 2))])
def test_alibi_is_by_position(length, heads):
    """Positions in any order, as siblings of a tree have them; output and gradients."""
    generator = torch.Generator().manual_seed(length)
    mask = random_mask(length, generator)
    slopes = torch.rand(heads[0], generator=generator, dtype=torch.float64)
    alibi = (slopes, torch.randint(0, 50, (length,), generator=generator))
    ours = draw(length, *heads, 4, generator)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    result, expected = column_mask_attention(*ours, mask, alibi=alibi), obvious(*theirs, mask, alibi=alibi)
    torch.testing.assert_close(result, expected)
    assert not torch.allclose(result, column_mask_attention(*ours, mask))
    for a, b in zip(
        torch.autograd.grad(result.square().sum(), ours),
        torch.autograd.grad(expected.square().sum(), theirs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    shifted = (slopes, alibi[1] + 7)
    torch.testing.assert_close(column_mask_attention(*ours, mask, alibi=shifted), result)


def test_alibi_in_half_precision_keeps_the_queries_dtype():
    """Far positions: the distance is rounded, not the positions that it comes from."""
    index = torch.arange(8)
    mask = ColumnMask(index, torch.full((8,), 8))
    query, key, value = (tensor.detach() for tensor in draw(8, 2, 2, 4, torch.Generator().manual_seed(0)))
    slopes = torch.tensor([0.5, 2.0**-8])
    result = column_mask_attention(*(x.bfloat16() for x in (query, key, value)), mask, alibi=(slopes, index + 4001))
    assert result.dtype is torch.bfloat16
    expected = obvious(query, key, value, mask, alibi=(slopes.double(), index))
    torch.testing.assert_close(result.double(), expected, atol=0.03, rtol=0.03)


def test_chunks_leave_out_keys_that_nobody_sees():
    """Two packed documents: the queries of the second never touch the keys of the first."""
    length = 2 * CHUNK
    index = torch.arange(length)
    mask = ColumnMask(index, torch.where(index < CHUNK, CHUNK, length))
    assert [(keys.start, keys.stop) for _, keys, _ in mask.chunks] == [(0, CHUNK), (CHUNK, length)]


def tree_mask(root: int, branch: int, num_branches: int) -> ColumnMask:
    """A root, and branches that see it and themselves."""
    length = root + branch * num_branches
    until = torch.full((length,), length)
    for start in range(root, length, branch):
        until[start : start + branch] = start + branch
    return ColumnMask(torch.arange(length), until)


@pytest.mark.parametrize("alibi", [False, True])
def test_keys_between_a_root_and_a_branch_are_left_out(alibi):
    """Questions see the root and themselves: keys of others are not touched, and output and gradients are the same."""
    mask = tree_mask(root=40, branch=37, num_branches=9)
    gathered = [keys for _, keys, _ in mask.chunks if isinstance(keys, torch.Tensor)]
    assert gathered
    for queries, keys, visible in mask.chunks:
        assert visible.any(dim=0).all() or isinstance(keys, slice), f"keys that no query of {queries} sees"
    generator = torch.Generator().manual_seed(0)
    length = mask.visible_from.shape[0]
    positions = torch.randint(0, 50, (length,), generator=generator)
    bias = (torch.rand(2, generator=generator, dtype=torch.float64), positions) if alibi else None
    ours = draw(length, 2, 1, 2, generator)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    result, expected = column_mask_attention(*ours, mask, alibi=bias), obvious(*theirs, mask, alibi=bias)
    torch.testing.assert_close(result, expected)
    for a, b in zip(
        torch.autograd.grad(result.square().sum(), ours),
        torch.autograd.grad(expected.square().sum(), theirs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
