"""XVERSE as Llama: another name in config.json, the same tensors."""

from __future__ import annotations

from transformers import LlamaConfig

from keju.conversion.pair import Pair, require, shared_fields
from keju.models import rotary
from keju.models.llama_derived import XverseConfig

FIELDS = ("intermediate_size", "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_parameters")


def to_llama(config: XverseConfig) -> LlamaConfig:
    return LlamaConfig(**shared_fields(config, *FIELDS))


def to_xverse(config: LlamaConfig) -> XverseConfig:
    require(
        config,
        "XVERSE",
        num_key_value_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        attention_bias=False,
        mlp_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": rotary.BASE},
    )
    return XverseConfig(**shared_fields(config, *FIELDS))


PAIR = Pair(ours=XverseConfig, theirs=LlamaConfig, modules={}, to_theirs=to_llama, to_ours=to_xverse)
