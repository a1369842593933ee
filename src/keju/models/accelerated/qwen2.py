"""Qwen2 and what derives from it: half-split rotary positions, gated projections apart."""

from transformers.models.qwen2 import modeling_qwen2 as original

from keju.models import accelerated_layers as ours


class Qwen2RMSNorm(ours.FusedRMSNorm, original.Qwen2RMSNorm):
    pass


class Qwen2MLP(ours.FusedMLP, original.Qwen2MLP):
    pass


class Qwen2Attention(ours.FusedAttention, original.Qwen2Attention):
    pass


class Qwen2DecoderLayer(ours.FusedDecoderLayer, original.Qwen2DecoderLayer):
    pass
