"""Llama under other names: InternLM (7B, 20B; the first) and XVERSE (7B, 13B).

Their published code is a copy of Llama's, but their folders name a model_type that transformers does not know. All here
is transformers' Llama, with the names and defaults of their config.json. (What derives from Llama under its own name,
such as Ziya, AtomGPT, Vicuna, Chinese-LLaMA and DeepSeek-LLM, needs nothing from here.)

What differs from the published code, on purpose: quantized checkpoints (`quantization_bit`) are refused, not loaded as
if they were floats.
"""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

from keju.errors import UserError
from keju.models.published_config import PublishedConfig

LORA_TARGETS = ("q_proj", "v_proj")


class InternLMConfig(PublishedConfig, LlamaConfig):
    """Llama's fields, but for `bias` (of the attention projections) and `rotary`.

    `rotary` {"base": number, "type": "origin" or "dynamic"}: dynamic NTK for rows longer than max_position_embeddings,
    the same as Llama's with a factor of 1. Raises UserError for another type.
    """

    model_type = "internlm"
    attribute_map = {"bias": "attention_bias"}

    vocab_size: int = 103168
    rms_norm_eps: float = 1e-6
    attention_bias: bool = True

    def __post_init__(self, **kwargs):
        rotary = kwargs.pop("rotary", None)
        if rotary is not None:
            kwargs.setdefault("rope_theta", rotary.get("base", 10000))
            kind = rotary.get("type", "origin")
            if kind == "dynamic":
                kwargs.setdefault("rope_scaling", {"rope_type": "dynamic", "factor": 1.0})
            elif kind != "origin":
                raise UserError(f"rotary type {kind!r} is not supported for InternLM models")
        super().__post_init__(**kwargs)


class XverseConfig(PublishedConfig, LlamaConfig):
    """Llama's fields; the defaults are those of XVERSE-13B. Raises UserError for quantized checkpoints."""

    model_type = "xverse"

    vocab_size: int = 100278
    hidden_size: int = 5120
    intermediate_size: int = 13824
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    quantization_bit: int | None = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.quantization_bit:
            raise UserError(f"quantization_bit={self.quantization_bit} is not supported for XVERSE models")


class InternLMModel(LlamaModel):
    config_class = InternLMConfig


class InternLMForCausalLM(LlamaForCausalLM):
    config_class = InternLMConfig


class InternLMForSequenceClassification(LlamaForSequenceClassification):
    config_class = InternLMConfig


class XverseModel(LlamaModel):
    config_class = XverseConfig


class XverseForCausalLM(LlamaForCausalLM):
    config_class = XverseConfig


class XverseForSequenceClassification(LlamaForSequenceClassification):
    config_class = XverseConfig
