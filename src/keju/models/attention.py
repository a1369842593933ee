"""The attention implementation "keju" of transformers: any of its causal models gets token trees, unpatched.

transformers hands unknown keyword arguments of a model's forward down to its attention function. When a `column_mask`
(keju.kernels' ColumnMask) arrives there, it rules; otherwise attention and masks are those of "sdpa", so that
generation, padding and the KV cache work as ever.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from keju.errors import UserError
from keju.kernels.column_mask import ColumnMask
from keju.kernels.column_mask_attention import column_mask_attention

NAME = "keju"


def eager_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention: query [B, heads, T, D], key and value [B, kv_heads, S, D] -> [B, T, heads, D] and its weights.

    attention_mask, 4-D: bool, True = counts, or numbers that are added to the scores.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def keju_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    column_mask: ColumnMask | None = None,
    alibi: tuple[torch.Tensor, torch.Tensor] | None = None,
    longest_row: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """query [B, heads, T, D], key and value [B, kv_heads, T, D] -> ([B, T, heads, D], None), as transformers wants it.

    alibi: slopes [heads] and positions [T], for column_mask_attention; without a column mask ALiBi is in the mask.
    longest_row: tokens of the longest row in the trees, where it is known. Rows within a sliding window need none.

    Raises UserError where a model asks for something on top of the mask that trees do not carry.
    """
    if column_mask is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    window = kwargs.get("sliding_window")
    if window is not None and longest_row is not None and longest_row <= window:
        kwargs["sliding_window"] = None
    for name in ("sliding_window", "softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise UserError(f"{type(module).__name__} uses {name}, which attention over token trees does not support")
    output = column_mask_attention(query, key, value, column_mask, scale=scaling, dropout=dropout, alibi=alibi)
    return output.transpose(1, 2), None


def register() -> None:
    """Makes `attn_implementation="keju"` known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(NAME, keju_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


register()
