"""Qwen (v1) as Qwen2: `c_attn` is query, key and value one below the other, `w2` the gate and `w1` the other factor.

Exact for rows of up to `seq_length` tokens, where the dynamic NTK and the LogN of Qwen do nothing; Qwen2 has neither,
and gets max_position_embeddings = seq_length. Back from Qwen2 both are off. Dropout, which is for training, is not
carried over.
"""

from __future__ import annotations

from transformers import Qwen2Config

from keju.conversion.pair import Pair, require, shared_fields
from keju.models.qwen import QWenConfig


def to_qwen2(config: QWenConfig) -> Qwen2Config:
    require(config, "Qwen2", no_bias=True, scale_attn_weights=True)
    return Qwen2Config(
        **shared_fields(config),
        num_key_value_heads=config.n_head,
        intermediate_size=config.ffn_hidden_size // 2,
        rms_norm_eps=config.layer_norm_epsilon,
        max_position_embeddings=config.seq_length,
        rope_parameters={"rope_type": "default", "rope_theta": float(config.rotary_emb_base)},
    )


def to_qwen(config: Qwen2Config) -> QWenConfig:
    require(
        config,
        "Qwen",
        num_key_value_heads=config.num_attention_heads,
        hidden_act="silu",
        use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]},
    )
    return QWenConfig(
        **shared_fields(config),
        kv_channels=config.hidden_size // config.num_attention_heads,
        ffn_hidden_size=2 * config.intermediate_size,
        layer_norm_epsilon=config.rms_norm_eps,
        n_positions=config.max_position_embeddings,
        seq_length=config.max_position_embeddings,
        rotary_emb_base=config.rope_parameters["rope_theta"],
        embd_pdrop=0.0,
    )


PAIR = Pair(
    ours=QWenConfig,
    theirs=Qwen2Config,
    modules={
        "transformer.wte": ("model.embed_tokens",),
        "transformer.h.*.ln_1": ("model.layers.*.input_layernorm",),
        "transformer.h.*.attn.c_attn": tuple(f"model.layers.*.self_attn.{part}_proj" for part in "qkv"),
        "transformer.h.*.attn.c_proj": ("model.layers.*.self_attn.o_proj",),
        "transformer.h.*.ln_2": ("model.layers.*.post_attention_layernorm",),
        "transformer.h.*.mlp.w1": ("model.layers.*.mlp.up_proj",),
        "transformer.h.*.mlp.w2": ("model.layers.*.mlp.gate_proj",),
        "transformer.h.*.mlp.c_proj": ("model.layers.*.mlp.down_proj",),
        "transformer.ln_f": ("model.norm",),
    },
    to_theirs=to_qwen2,
    to_ours=to_qwen,
)
