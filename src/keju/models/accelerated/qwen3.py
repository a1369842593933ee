"""Qwen3: as Qwen2, with norms over each head of queries and keys."""

from transformers.models.qwen3 import modeling_qwen3 as original

from keju.models import accelerated_layers as ours


class Qwen3RMSNorm(ours.FusedRMSNorm, original.Qwen3RMSNorm):
    pass


class Qwen3MLP(ours.FusedMLP, original.Qwen3MLP):
    pass


class Qwen3Attention(ours.FusedAttention, original.Qwen3Attention):
    def queries_and_keys(self, query, key):
        return self.q_norm(query), self.k_norm(key)


class Qwen3DecoderLayer(ours.FusedDecoderLayer, original.Qwen3DecoderLayer):
    pass
