"""Forward passes over our kernels for the layers that the models of transformers share, to be mixed into their classes.

Attribute names are those of transformers. What a family has of its own, its module in `keju.models.accelerated` says.
"""

from __future__ import annotations

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from keju.kernels.glu import glu
from keju.kernels.rms_norm import rms_norm
from keju.kernels.rotary import rotary
from keju.models.attention import eager_attention
from keju.models.layers import FORMS, project


class FusedRMSNorm:
    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None):
        """The norm; with `residual` (norm of the sum, hidden_states + residual)."""
        return rms_norm(hidden_states, self.weight, self.variance_epsilon, residual=residual, casting="llama")


class FusedMLP:
    """gate_proj, up_proj and down_proj."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        form = FORMS.get(self.config.hidden_act)
        if form is None:
            return super().forward(hidden_states)
        gate, up = project(hidden_states, self.gate_proj, self.up_proj)
        return self.down_proj(glu(gate, up, form))


class FusedPackedMLP:
    """gate_up_proj and down_proj."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        form = FORMS.get(self.config.hidden_act)
        if form is None:
            return super().forward(hidden_states)
        return self.down_proj(glu(self.gate_up_proj(hidden_states), form=form))


class FusedAttention:
    """rotary_group: which elements of a head are turned together, see keju.kernels.rotary; None: half-split."""

    rotary_group: int | None = None

    def queries_and_keys(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, heads, D] before rotation."""
        return query, key

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values=None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim))
            for states in project(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (states.transpose(1, 2) for states in self.queries_and_keys(query, key))
        # transformers repeats the angles of the first half in the second.
        cos, sin = (table[..., : table.shape[-1] // 2] for table in position_embeddings)
        query, key = rotary(query, key, cos, sin, group=self.rotary_group, in_place_backward=True)
        value = value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        if getattr(self, "sliding_window", None) is not None:
            kwargs["sliding_window"] = self.sliding_window
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.flatten(-2)), weights


class FusedDecoderLayer:
    """The addition to the residual stream and the norm after it in one pass."""

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        normed, hidden_states = self.post_attention_layernorm(attended, residual=hidden_states)
        return hidden_states + self.mlp(normed)
