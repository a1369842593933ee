"""Attention over packed rows: plain causal ones, and trees of a prompt with K answers.

The peers of a tree: FlexAttention with the same mask, and what is done elsewhere, SDPA over one row an answer that
begins with the prompt, so that the prompt is computed K times. The masks are made before, for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from harness.case import FORWARD, TRAINING, Absent, Case, Provider, Setting, Work, draw_heads
from harness.peers import compiled, widened

from keju.kernels.column_mask import ColumnMask
from keju.kernels.column_mask_attention import column_mask_attention


class Size(NamedTuple):
    """tokens: of a row, which holds as many trees as fit."""

    tokens: int
    prompts: tuple[int, ...]
    answer: int
    heads: int
    kv_heads: int
    head_dim: int


SIZES = {
    "full": Size(8192, (512, 1024, 2048), 256, 32, 8, 128),
    "small": Size(768, (128, 256), 64, 4, 2, 64),
    "tiny": Size(32, (8,), 4, 2, 1, 16),
}


class Tree(NamedTuple):
    """A prompt and `count` answers, in tokens; no answers: a plain row."""

    prompt: int
    count: int
    answer: int

    @property
    def length(self) -> int:
        return self.prompt + self.count * self.answer


def cases(setting: Setting) -> list[Case]:
    size = SIZES[setting.size]
    plain = [_case(setting, Tree(size.tokens, 0, 0))]
    return plain + [_case(setting, Tree(prompt, k, size.answer)) for k in (4, 8) for prompt in size.prompts]


def _case(setting: Setting, tree: Tree) -> Case:
    size = SIZES[setting.size]
    number = max(1, size.tokens // tree.length)
    length, heads, kv_heads, head_dim = number * tree.length, size.heads, size.kv_heads, size.head_dim
    begin = torch.arange(length)
    until = _until(tree, number)
    pairs = int((until - begin).sum())

    def build():
        mask = ColumnMask(begin.to(setting.device), until.to(setting.device))
        inputs = {
            "query": draw_heads(setting, heads, length, head_dim),
            "key": draw_heads(setting, kv_heads, length, head_dim, seed=1),
            "value": draw_heads(setting, kv_heads, length, head_dim, seed=2),
        }
        query = torch.arange(length, device=setting.device)[:, None]
        visible = (mask.visible_from <= query) & (query < mask.visible_until)

        def plain(query, key, value):
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            weights = widened(scores.masked_fill(~visible, -torch.inf)).softmax(-1)
            return weights.to(query.dtype) @ value

        return inputs, {
            "keju": Provider(lambda query, key, value: column_mask_attention(query, key, value, mask)),
            "torch": Provider(plain),
            "torch.compile": compiled(setting, plain),
            "flex": _flex(setting, mask),
            "sdpa": _rows_of_answers(setting, tree, number) if tree.count else Provider(_causal),
        }

    row = f"{number} x ({tree.prompt} + {tree.count} x {tree.answer})" if tree.count else f"causal, {length}"
    # query and out, key and value; then those again, their gradients, and the gradient of out
    once = (2 * heads + 2 * kv_heads) * length * head_dim * setting.dtype.itemsize
    # Two products forward, five more backward (FlashAttention-2, section 4.1), of pairs that see each other
    flops = 4 * heads * head_dim * pairs
    work = {FORWARD: Work(once, flops), TRAINING: Work(3 * once, 3.5 * flops)}
    return Case(f"{row} tokens, {heads}/{kv_heads} heads of {head_dim}", setting.dtype, work, build)


def _until(tree: Tree, number: int) -> torch.Tensor:
    """int64 [tokens]: where the queries end that see each key."""
    ends = [tree.length] * tree.prompt
    for index in range(1, tree.count + 1):
        ends += [tree.prompt + index * tree.answer] * tree.answer
    return (torch.tensor(ends) + tree.length * torch.arange(number)[:, None]).flatten()


def _causal(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def _rows_of_answers(setting: Setting, tree: Tree, number: int) -> Provider:
    """SDPA over [answers, heads, prompt + answer, head_dim]."""
    prompt = torch.arange(tree.prompt).expand(tree.count, -1)
    answers = tree.prompt + torch.arange(tree.count * tree.answer).view(tree.count, tree.answer)
    rows = torch.cat([prompt, answers], dim=1)
    rows = torch.cat([rows + tree.length * index for index in range(number)]).to(setting.device)
    # Where each token is found first; of the prompt's copies, which are equal, one counts.
    flat = rows.flatten()
    first = torch.full((number * tree.length,), len(flat), device=setting.device)
    first = first.scatter_reduce(0, flat, torch.arange(len(flat), device=setting.device), "amin")

    def pack(**states):
        return {name: x[0].transpose(0, 1)[rows].transpose(1, 2) for name, x in states.items()}

    def unpack(out):
        return out.transpose(1, 2).flatten(0, 1)[first].transpose(0, 1)[None]

    return Provider(_causal, pack, unpack)


def _flex(setting: Setting, mask: ColumnMask) -> Provider | Absent:
    if setting.device != "cuda":
        return Absent("FlexAttention has no backward pass on the CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    begin, until, length = mask.visible_from, mask.visible_until, len(mask.visible_from)
    blocks = create_block_mask(
        lambda batch, head, q, k: (begin[k] <= q) & (q < until[k]), None, None, length, length, device=setting.device
    )
    return compiled(
        setting, lambda query, key, value: flex_attention(query, key, value, block_mask=blocks, enable_gqa=True)
    )
