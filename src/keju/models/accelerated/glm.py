"""GLM-4-9B: interleaved rotary positions in a part of each head, gate and up in one projection."""

from transformers.models.glm import modeling_glm as original

from keju.models import accelerated_layers as ours


class GlmRMSNorm(ours.FusedRMSNorm, original.GlmRMSNorm):
    pass


class GlmMLP(ours.FusedPackedMLP, original.GlmMLP):
    pass


class GlmAttention(ours.FusedAttention, original.GlmAttention):
    rotary_group = 1


class GlmDecoderLayer(ours.FusedDecoderLayer, original.GlmDecoderLayer):
    pass
