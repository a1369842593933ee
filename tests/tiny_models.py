"""Tiny random models of each family, float32, for exactness tests."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

# Initial weights far from zero, so that differences show; special tokens 1 (bos), 2 (eos) and 3 (pad) for all.
LIVELY = {"initializer_range": 0.2}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
# The start token and the mask token of prefix language models.
SOP, MASK, GMASK = 5, 4, 6
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
BAICHUAN = {**LLAMA, "model_type": "baichuan", "num_attention_heads": 4}
CHATGLM2 = {
    "model_type": "chatglm",
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "kv_channels": 8,
    "num_layers": 2,
    "num_attention_heads": 4,
    "multi_query_group_num": 2,
    "seq_length": 256,
}
FAMILIES: dict[str, dict] = {
    "llama": {**LLAMA, "num_key_value_heads": 2},
    "pangu": {
        "model_type": "gpt_pangu",
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "max_position_embeddings": 256,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "pad_token_id": 6,
    },
    "glm": {
        "model_type": "glm",
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "max_sequence_length": 256,
        "embedding_dropout_prob": 0.0,
        "attention_dropout_prob": 0.0,
        "output_dropout_prob": 0.0,
        "sop_token_id": SOP,
        "eop_token_id": 2,
        "mask_token_id": MASK,
        "smask_token_id": MASK,
        "gmask_token_id": GMASK,
    },
    "chatglm": {
        "model_type": "chatglm",
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "inner_hidden_size": 64,
        "max_sequence_length": 256,
        "bos_token_id": SOP,
        "mask_token_id": MASK,
        "gmask_token_id": GMASK,
    },
    "chatglm2": CHATGLM2,
    "baichuan-7B": BAICHUAN,
    # ALiBi slopes of a number of heads that is no power of two are made in another way
    "baichuan-13B": {
        **BAICHUAN, "max_position_embeddings": None, "model_max_length": 256,
        "hidden_size": 24, "num_attention_heads": 6,
    },
    "baichuan2-7B": {**BAICHUAN, "z_loss_weight": 0},
    "internlm": {**LLAMA, "model_type": "internlm", "rotary": {"base": 10000, "type": "dynamic"}},
    "xverse": {**LLAMA, "model_type": "xverse"},
    "qwen": {
        "model_type": "qwen",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "kv_channels": 8,
        "ffn_hidden_size": 96,
        "n_positions": 256,
        "seq_length": 256,
        "embd_pdrop": 0.0,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    },
}  # fmt: skip

# Where a configuration names dropout: for tests of stages that train without it.
DROPOUT: dict[str, dict] = {
    "llama": {"attention_dropout": 0.1},
    "pangu": {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
    "glm": {"embedding_dropout_prob": 0.1, "attention_dropout_prob": 0.1, "output_dropout_prob": 0.1},
    "chatglm2": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "qwen": {"embd_pdrop": 0.1, "attn_pdrop": 0.1},
}


def build(family: str, vocab_size: int = 97, seed: int = 0, **overrides) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    import keju  # noqa: F401  registers the families
    from keju.models import attention

    fields = {**LIVELY, **IDS, **FAMILIES[family], **overrides}
    fields["padded_vocab_size" if FAMILIES[family] is CHATGLM2 else "vocab_size"] = vocab_size
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME).float().eval()


def build_scalar_model(causal_lm, seed: int = 0):
    """A reward model with the backbone of `causal_lm` and a random head."""
    from transformers import AutoModelForSequenceClassification

    config = type(causal_lm.config).from_dict({**causal_lm.config.to_dict(), "num_labels": 1})
    config._attn_implementation = causal_lm.config._attn_implementation
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=config._attn_implementation)
    prefix = causal_lm.base_model_prefix
    weights = getattr(causal_lm, prefix).state_dict()
    # ChatGLM2 has its LM head inside the backbone, but not that of a reward model
    getattr(model, model.base_model_prefix).load_state_dict(weights, strict="output_layer.weight" not in weights)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    return model.float().eval()


def opening(model: nn.Module) -> list[int]:
    """What the prompt of a model ends in: nothing, or the mask and start tokens of a prefix language model."""
    from keju.models.backbone import backbone_of
    from keju.models.prefix_lm import PrefixLM

    return [GMASK, SOP] if isinstance(backbone_of(model), PrefixLM) else []


def row_inputs(model: nn.Module, rows: list[list[int]], side: str = "right", pad: int = 3, extra: int = 0) -> dict:
    """Rows padded on `side` (to `extra` more than the longest): what a model's forward takes."""
    from keju.models.backbone import backbone_of
    from keju.models.prefix_lm import PrefixLM, row_positions

    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, where], mask[number, where] = torch.tensor(row), 1
    backbone = backbone_of(model)
    positions = backbone.padded_layout(ids, mask)[0] if isinstance(backbone, PrefixLM) else row_positions(mask)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


build_llama = partial(build, "llama")
build_pangu = partial(build, "pangu")
BUILDERS = {family: partial(build, family) for family in FAMILIES}
