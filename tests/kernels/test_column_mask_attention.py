from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import assert_near, compare, draw

from keju.kernels import column_mask_attention as module
from keju.kernels.column_mask import CHUNK, ColumnMask
from keju.kernels.column_mask_attention import column_mask_attention

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(params=["triton", "reference"])
def choice(request, monkeypatch) -> str:
    monkeypatch.setenv("KEJU_KERNELS", request.param)
    return request.param


def random_mask(length: int, seed: int, device="cpu", *, may_be_blind: bool = False) -> ColumnMask:
    """Any intervals in which each query at least sees itself; or (may_be_blind) any intervals, empty ones too."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(length)

    def some(limit):
        return torch.randint(0, limit, (length,), generator=generator)

    if may_be_blind:
        return ColumnMask(some(length).to(device), some(length + 1).to(device))
    begin, end = index - some(3) * some(length), index + 1 + some(length)
    return ColumnMask(begin.clamp(min=0).to(device), end.clamp(max=length).to(device))


def obvious(query, key, value, mask: ColumnMask, scale=None, alibi=None):
    """Softmax over exactly the visible keys, query by query; 0 where there are none."""
    heads, length, size = query.shape[1:]
    groups = heads // key.shape[1]
    scale = size**-0.5 if scale is None else scale
    begin, until = mask.visible_from.tolist(), mask.visible_until.tolist()
    rows = []
    for head in range(heads):
        for q in range(length):
            seen = [k for k in range(length) if begin[k] <= q < until[k]]
            if not seen:
                rows.append(0 * (query.sum() + key.sum() + value.sum()) + value.new_zeros(value.shape[-1]))
                continue
            scores = key[0, head // groups, seen] @ query[0, head, q] * scale
            if alibi is not None:
                slopes, positions = alibi
                scores = scores + slopes[head] * (positions[seen] - positions[q])
            rows.append(torch.softmax(scores, dim=0) @ value[0, head // groups, seen])
    return torch.stack(rows).view(1, heads, length, -1)


def states(length, heads, kv_heads, size, *, dtype=torch.float64, device="cpu", seed=0, strided=False):
    shapes = [(1, heads, length, size), (1, kv_heads, length, size), (1, kv_heads, length, size)]
    return [
        draw(*shape, dtype=dtype, device=device, seed=seed + number, strided=strided)
        for number, shape in enumerate(shapes)
    ]


def check(case, mask, dtype=torch.float64, **options):
    return compare(
        lambda *a: column_mask_attention(*a, mask, **options), lambda *a: obvious(*a, mask, **options), case, dtype
    )


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 40),
    st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from(["triton", "reference"]),
)
def test_random_masks(length, heads, seed, may_be_blind, choice):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEJU_KERNELS", choice)
        check(states(length, *heads, 4, seed=seed), random_mask(length, seed, may_be_blind=may_be_blind))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("length", "heads", "size"),
    [(1, (1, 1), 32), (63, (2, 1), 64), (65, (4, 2), 40), (100, (2, 2), 8), (127, (3, 1), 16), (17, (2, 2), 256)],
)
def test_shapes_and_dtypes(length, heads, size, dtype, device, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    check(states(length, *heads, size, dtype=dtype, device=device), random_mask(length, 1, device), dtype)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_meet_without_a_seam(length, choice):
    case = [tensor.detach() for tensor in states(length, 1, 1, 2)]
    check(case, random_mask(length, length), scale=0.3)


@pytest.mark.parametrize(("length", "heads"), [(9, (3, 1)), (CHUNK + 3, (2, 2))])
def test_alibi_is_by_position(length, heads, choice):
    """Positions in any order, as siblings of a tree have them; output and gradients."""
    mask, case = random_mask(length, 2), states(length, *heads, 4)
    slopes = torch.rand(heads[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positions = torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(2))
    (result,) = check(case, mask, alibi=(slopes, positions))
    assert not torch.allclose(result, column_mask_attention(*case, mask))
    torch.testing.assert_close(column_mask_attention(*case, mask, alibi=(slopes, positions + 7)), result)


def test_alibi_in_half_precision_keeps_the_queries_dtype(choice, device):
    """Far positions: the distance is rounded, not the positions that it comes from."""
    index = torch.arange(8, device=device)
    mask = ColumnMask(index, torch.full_like(index, 8))
    case = [tensor.detach() for tensor in states(8, 2, 2, 16, dtype=torch.bfloat16, device=device)]
    slopes = torch.tensor([0.5, 2.0**-8], device=device)
    result = column_mask_attention(*case, mask, alibi=(slopes, index + 4001))
    assert result.dtype is torch.bfloat16
    expected = obvious(*(x.double() for x in case), mask, alibi=(slopes.double(), index))
    assert_near(result, expected, torch.bfloat16, "output")


def test_queries_that_see_nothing(choice, device):
    """0 and no gradient, in the midst of others; and a row in which nobody sees anything."""
    index = torch.arange(40, device=device)
    until = torch.where(index % 3 == 0, 0, index // 3 * 3 + 3)  # in threes, of which the first is no key
    begin = index + (index % 3 == 0)
    case = states(40, 2, 1, 16, dtype=torch.float32, device=device)
    (result,) = check(case, ColumnMask(begin, until), torch.float32)
    assert not result[0, :, ::3].any()
    nobody = torch.zeros(40, dtype=torch.int64, device=device)
    check(case, ColumnMask(nobody, nobody), torch.float32)


def test_no_tokens(choice, device):
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    case = states(0, 2, 1, 16, dtype=torch.float32, device=device)
    result = column_mask_attention(*case, ColumnMask(nothing, nothing))
    assert result.shape == (1, 2, 0, 16)
    result.sum().backward()


@pytest.mark.parametrize("strided", [False, True], ids=["of one projection", "with gaps"])
def test_as_the_models_hand_them_over(strided, choice, device):
    """[1, T, heads, D] seen as [1, heads, T, D], query, key and value views of one projection; or rows with gaps."""
    mask = random_mask(50, 3, device)
    if strided:
        check(states(50, 2, 2, 16, dtype=torch.float32, device=device, strided=True), mask, torch.float32)
        return

    def split(packed):
        return packed.unflatten(-1, (-1, 16)).transpose(1, 2).split([4, 2, 2], dim=1)

    compare(
        lambda packed: column_mask_attention(*split(packed), mask),
        lambda packed: obvious(*split(packed), mask),
        [draw(1, 50, 8 * 16, device=device)],
        torch.float32,
    )


def test_masks_and_positions_with_gaps(device, monkeypatch):
    """Columns of one table, say."""
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    mask, index = random_mask(50, 3, device), torch.arange(50, device=device)
    table = torch.stack([mask.visible_from, mask.visible_until, index], dim=1)
    slopes = torch.rand(2, 2, device=device)[:, 0]
    case = states(50, 2, 2, 16, dtype=torch.float32, device=device)
    found = column_mask_attention(*case, ColumnMask(table[:, 0], table[:, 1]), alibi=(slopes, table[:, 2]))
    assert torch.equal(found, column_mask_attention(*case, mask, alibi=(slopes.contiguous(), index)))


def test_rows_beyond_32_bits(monkeypatch):
    """Rows so far apart that their addresses do not fit into 32 bits; only the memory that is touched exists."""
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.use_deterministic_algorithms(False)  # filling this memory would make it exist
    far = torch.empty(2**31 + 16, dtype=torch.float16, device=device).as_strided((1, 1, 2, 16), (0, 0, 2**31, 1))
    case = [tensor.detach() for tensor in states(2, 1, 1, 16, dtype=torch.float16, device=device)]
    mask = random_mask(2, 0, device)
    far.copy_(case[1])
    assert torch.equal(column_mask_attention(case[0], far, case[2], mask), column_mask_attention(*case, mask))
    far.copy_(case[0])
    assert torch.equal(column_mask_attention(far, *case[1:], mask), column_mask_attention(*case, mask))


def test_gradcheck(device, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    mask = random_mask(19, 4, device, may_be_blind=True)
    alibi = (torch.rand(2, dtype=torch.float64, device=device), torch.arange(19, device=device))
    torch.autograd.gradcheck(
        lambda *a: column_mask_attention(*a, mask, alibi=alibi, scale=0.7),
        states(19, 2, 1, 3, device=device),
        fast_mode=True,
    )


def test_the_backward_pass_is_deterministic(device, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    case, mask = states(70, 4, 1, 16, dtype=torch.bfloat16, device=device), random_mask(70, 6, device)
    loss = column_mask_attention(*case, mask).float().square().sum()
    first = torch.autograd.grad(loss, case, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, case)))


class TestDropout:
    """The mask of dropout is read off the kernel itself: with equal scores and one-hot values each kept key shows."""

    length, dropout = 60, 0.3

    def kept(self, device):
        torch.manual_seed(5)
        query = torch.zeros(1, 2, self.length, 64, device=device)
        values = torch.eye(self.length, 64, device=device).expand(1, 2, -1, -1)
        found = column_mask_attention(query, query, values, self.everything(device), dropout=self.dropout)
        return found[0, :, :, : self.length].double() * self.length

    def everything(self, device):
        return ColumnMask(
            torch.zeros(self.length, dtype=torch.int64, device=device),
            torch.full((self.length,), self.length, device=device),
        )

    @pytest.fixture(autouse=True)
    def in_triton(self, monkeypatch):
        monkeypatch.setenv("KEJU_KERNELS", "triton")

    def test_share(self, device):
        kept = self.kept(device)
        torch.testing.assert_close(kept[kept > 0], torch.full_like(kept[kept > 0], 1 / (1 - self.dropout)))
        share = (kept > 0).double().mean().item()
        assert abs(share - (1 - self.dropout)) < 4 * (self.dropout * (1 - self.dropout) / kept.numel()) ** 0.5
        assert not torch.equal(kept[0], kept[1]), "heads drop different keys"

    def test_forward_and_backward_drop_the_same(self, device):
        kept = self.kept(device)
        case = states(self.length, 2, 1, 16, dtype=torch.float32, device=device)

        def dropped(query, key, value):
            weights = torch.softmax(query[0] @ key[0].transpose(1, 2) / 4, dim=-1) * kept
            return (weights @ value[0])[None]

        def ours(*tensors):
            torch.manual_seed(5)
            return column_mask_attention(*tensors, self.everything(device), dropout=self.dropout)

        compare(ours, dropped, case, torch.float32)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 70), st.integers(0, 10**6), st.sampled_from([(16, 32), (32, 16), (16, 16)]), st.booleans())
def test_blocks_hold_all_that_is_visible(length, seed, sizes, may_be_blind):
    """No visible pair in a block that is left out, no masked pair in one that counts as whole; both ways round."""
    mask = random_mask(length, seed, may_be_blind=may_be_blind)
    index = torch.arange(length)
    visible = (mask.visible_from <= index[:, None]) & (index[:, None] < mask.visible_until)
    for blocks, pairs, (rows, columns) in zip(
        mask.blocks(*sizes), (visible, visible.t()), (sizes, sizes[::-1]), strict=True
    ):
        for number, order in enumerate(blocks.index.tolist()):
            assert sorted(order) == list(range(-(-length // columns)))
            here = pairs[number * rows : (number + 1) * rows]
            met, partial = order[: blocks.num_met[number]], order[: blocks.num_partial[number]]
            for block in order:
                part = here[:, block * columns : (block + 1) * columns]
                assert block in met or not part.any()
                assert block not in met or block in partial or part.all()


def test_a_tree_leaves_most_blocks_out():
    """Eight branches under a root of the same length see the root and themselves, and no sibling."""
    blocks, _ = tree_mask(root=128, branch=128, num_branches=8).blocks(128, 64)
    assert blocks.num_met.tolist() == [2] + [4] * 8 and (blocks.num_met - blocks.num_partial).tolist() == [0] + [2] * 8


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy, which interprets
def test_masked_blocks_are_not_read(device, monkeypatch):
    """Keys of another document may hold anything at all."""
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    length = 512
    index = torch.arange(length, device=device)
    mask = ColumnMask(index, torch.where(index < 256, 256, length))
    case = [tensor.detach() for tensor in states(length, 1, 1, 16, dtype=torch.float32, device=device)]
    expected = column_mask_attention(*case, mask)[:, :, 256:]
    for tensor in case[1:]:
        tensor[:, :, :256] = float("nan")
    assert torch.equal(column_mask_attention(*case, mask)[:, :, 256:], expected)


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
def test_keys_between_a_root_and_a_branch_are_left_out(alibi, choice):
    """Questions see the root and themselves: keys of others are not touched, and output and gradients are the same."""
    mask = tree_mask(root=40, branch=37, num_branches=9)
    gathered = [keys for _, keys, _ in mask.chunks if isinstance(keys, torch.Tensor)]
    assert gathered
    for queries, keys, visible in mask.chunks:
        assert visible.any(dim=0).all() or isinstance(keys, slice), f"keys that no query of {queries} sees"
    length = mask.visible_from.shape[0]
    positions = torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(0))
    check(
        states(length, 2, 1, 2),
        mask,
        alibi=(torch.tensor([0.3, 0.8], dtype=torch.float64), positions) if alibi else None,
    )


def test_autocast(choice, device):
    case, mask = states(20, 2, 1, 16, dtype=torch.float32, device=device), random_mask(20, 0, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = column_mask_attention(*case, mask)
    result.float().sum().backward()
    assert result.dtype == torch.bfloat16 and case[0].grad.dtype == torch.float32
    assert_near(result, obvious(*(x.double() for x in case), mask), torch.bfloat16, "output")


def test_other_heads_run_in_torch(device, monkeypatch):
    """Values of another size than the keys, and very large heads."""
    monkeypatch.setenv("KEJU_KERNELS", "triton")
    monkeypatch.setattr(module, "_Attention", None)
    query, key, _ = states(5, 2, 1, 16, dtype=torch.float32, device=device)
    value = draw(1, 1, 5, 24, device=device)
    check([query, key, value], random_mask(5, 0, device), torch.float32)
    check(states(5, 2, 1, 257, dtype=torch.float32, device=device), random_mask(5, 0, device), torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.ones(2, 2, 5, 4)}, r"query must be \[1, heads, T, D\]"),
        ({"key": torch.ones(1, 3, 5, 4)}, "kv_heads a divisor of 2"),
        ({"key": torch.ones(1, 1, 6, 4)}, r"key must be \[1, 1, 5, 4\]"),
        ({"value": torch.ones(1, 2, 5, 4)}, r"value must be \[1, 1, 5, 4\]"),
        ({"value": torch.ones(1, 1, 5, 4, dtype=torch.float16)}, "value is torch.float16, but query torch.float32"),
        ({"mask": ColumnMask(torch.zeros(4), torch.ones(5))}, r"mask.visible_from must be \[5\]"),
        ({"mask": ColumnMask(*torch.zeros(2, 5, device="meta"))}, "mask is on meta, but query on cpu"),
        ({"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\)"),
        ({"alibi": (torch.ones(3), torch.arange(5))}, r"slopes of alibi must be \[2\]"),
    ],
)
def test_bad_input(change, message):
    mask = ColumnMask(torch.arange(5), torch.full((5,), 5))
    whole = {"query": torch.ones(1, 2, 5, 4), "key": torch.ones(1, 1, 5, 4), "value": torch.ones(1, 1, 5, 4)}
    with pytest.raises(ValueError, match=message):
        column_mask_attention(**{**whole, "mask": mask, **change})
