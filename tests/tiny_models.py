"""Tiny random models of each family, float32, for exactness tests."""

from __future__ import annotations

import torch


def build_llama(vocab_size: int = 97, seed: int = 0, *, kv_heads: int = 2, **overrides):
    from transformers import LlamaConfig, LlamaForCausalLM

    from keju.models import attention

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        # far from zero, so that differences show
        initializer_range=0.2,
        **overrides,
    )
    config._attn_implementation = attention.NAME
    return LlamaForCausalLM(config).float().eval()


def build_pangu(vocab_size: int = 97, seed: int = 0, **overrides):
    from keju.models import attention
    from keju.models.pangu import PanguConfig, PanguForCausalLM

    torch.manual_seed(seed)
    config = PanguConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        max_position_embeddings=256,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        initializer_range=0.2,
        pad_token_id=6,
        **overrides,
    )
    config._attn_implementation = attention.NAME
    return PanguForCausalLM(config).float().eval()


def build_scalar_model(causal_lm, seed: int = 0):
    """A reward model with the backbone of `causal_lm` and a random head."""
    from transformers import AutoModelForSequenceClassification

    config = type(causal_lm.config).from_dict({**causal_lm.config.to_dict(), "num_labels": 1})
    config._attn_implementation = causal_lm.config._attn_implementation
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=config._attn_implementation)
    prefix = causal_lm.base_model_prefix
    getattr(model, model.base_model_prefix).load_state_dict(getattr(causal_lm, prefix).state_dict())
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model.float().eval()


BUILDERS = {"llama": build_llama, "pangu": build_pangu}
