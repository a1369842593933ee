"""Llama and what derives from it: half-split rotary positions, gated projections apart."""

from transformers.models.llama import modeling_llama as original

from keju.models import accelerated_layers as ours


class LlamaRMSNorm(ours.FusedRMSNorm, original.LlamaRMSNorm):
    pass


class LlamaMLP(ours.FusedMLP, original.LlamaMLP):
    pass


class LlamaAttention(ours.FusedAttention, original.LlamaAttention):
    pass


class LlamaDecoderLayer(ours.FusedDecoderLayer, original.LlamaDecoderLayer):
    pass
