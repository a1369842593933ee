"""GLM-4-0414: as GLM-4-9B, with norms after attention and feed-forward layers as well."""

from transformers.models.glm4 import modeling_glm4 as original

from keju.models import accelerated_layers as ours


class Glm4RMSNorm(ours.FusedRMSNorm, original.Glm4RMSNorm):
    pass


class Glm4MLP(ours.FusedPackedMLP, original.Glm4MLP):
    pass


class Glm4Attention(ours.FusedAttention, original.Glm4Attention):
    rotary_group = 1


class Glm4DecoderLayer(original.Glm4DecoderLayer):
    def forward(self, hidden_states, **kwargs):
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        attended = self.post_self_attn_layernorm(attended)
        normed, hidden_states = self.post_attention_layernorm(attended, residual=hidden_states)
        return hidden_states + self.post_mlp_layernorm(self.mlp(normed))
