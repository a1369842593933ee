"""The first InternLM as Llama: other names in config.json, the same tensors."""

from __future__ import annotations

from transformers import LlamaConfig

from keju.conversion.pair import Pair, require, shared_fields
from keju.models.llama_derived import InternLMConfig

FIELDS = (
    *("intermediate_size", "hidden_act", "rms_norm_eps", "max_position_embeddings"),
    *("num_key_value_heads", "attention_bias", "rope_parameters"),
)


def to_llama(config: InternLMConfig) -> LlamaConfig:
    return LlamaConfig(**shared_fields(config, *FIELDS))


def to_internlm(config: LlamaConfig) -> InternLMConfig:
    require(config, "InternLM", head_dim=config.hidden_size // config.num_attention_heads, mlp_bias=False)
    return InternLMConfig(**shared_fields(config, *FIELDS))


PAIR = Pair(ours=InternLMConfig, theirs=LlamaConfig, modules={}, to_theirs=to_llama, to_ours=to_internlm)
