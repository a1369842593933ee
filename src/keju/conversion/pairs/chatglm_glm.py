"""ChatGLM2-6B and ChatGLM3-6B as GLM, the class of GLM-4 in transformers: the query, key and value of one projection.

Both turn the first half of each head in neighbouring pairs and keep gate and up in one matrix. GLM has no dropout of
hidden states; it is not carried over.
"""

from __future__ import annotations

from transformers import GlmConfig

from keju.conversion.pair import Pair, require, shared_fields
from keju.models.chatglm2 import ChatGLM2Config

ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


def to_glm(config: ChatGLM2Config) -> GlmConfig:
    require(config, "GLM", add_bias_linear=False)
    converted = GlmConfig(
        **shared_fields(config),
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        intermediate_size=config.ffn_hidden_size,
        rms_norm_eps=config.layernorm_epsilon,
        max_position_embeddings=config.seq_length,
        attention_bias=config.add_qkv_bias,
        attention_dropout=config.attention_dropout,
        rope_parameters=dict(ROTARY),
    )
    converted.eos_token_id = config.eos_token_id  # GlmConfig takes None for the ends of GLM-4
    return converted


def to_chatglm(config: GlmConfig) -> ChatGLM2Config:
    require(config, "ChatGLM2", hidden_act="silu", rope_parameters=ROTARY)
    return ChatGLM2Config(
        **shared_fields(config),
        multi_query_group_num=config.num_key_value_heads,
        kv_channels=config.head_dim,
        ffn_hidden_size=config.intermediate_size,
        layernorm_epsilon=config.rms_norm_eps,
        seq_length=config.max_position_embeddings,
        add_qkv_bias=config.attention_bias,
        attention_dropout=config.attention_dropout,
    )


PAIR = Pair(
    ours=ChatGLM2Config,
    theirs=GlmConfig,
    modules={
        "transformer.embedding.word_embeddings": ("model.embed_tokens",),
        "transformer.encoder.layers.*.input_layernorm": ("model.layers.*.input_layernorm",),
        "transformer.encoder.layers.*.self_attention.query_key_value": tuple(
            f"model.layers.*.self_attn.{part}_proj" for part in "qkv"
        ),
        "transformer.encoder.layers.*.self_attention.dense": ("model.layers.*.self_attn.o_proj",),
        "transformer.encoder.layers.*.post_attention_layernorm": ("model.layers.*.post_attention_layernorm",),
        "transformer.encoder.layers.*.mlp.dense_h_to_4h": ("model.layers.*.mlp.gate_up_proj",),
        "transformer.encoder.layers.*.mlp.dense_4h_to_h": ("model.layers.*.mlp.down_proj",),
        "transformer.encoder.final_layernorm": ("model.norm",),
        "transformer.output_layer": ("lm_head",),
    },
    to_theirs=to_glm,
    to_ours=to_chatglm,
)
