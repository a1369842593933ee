"""Baichuan-7B and Baichuan2-7B as Llama: `W_pack` is query, key and value one below the other.

The NormHead of Baichuan2 divides each row of its weight by its length at every forward: the head of Llama holds the
quotient, in float32 whatever the rest is, so that it is exact in float32 and rounded once, when it is loaded, in half
precision. On the way back it is a plain head.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig

from keju.conversion.pair import Pair, require, shared_fields
from keju.errors import UserError
from keju.models import rotary
from keju.models.baichuan import BaichuanConfig

FIELDS = ("intermediate_size", "hidden_act", "rms_norm_eps", "max_position_embeddings")
ROTARY = {"rope_type": "default", "rope_theta": rotary.BASE}


def to_llama(config: BaichuanConfig) -> LlamaConfig:
    if config.max_position_embeddings is None:
        raise UserError("Baichuan 13B has ALiBi, Llama rotary positions: there is no exact equal")
    if config.z_loss_weight is not None:
        require(config, "a NormHead as a plain head", tie_word_embeddings=False)
    return LlamaConfig(**shared_fields(config, *FIELDS), rope_parameters=dict(ROTARY))


def to_baichuan(config: LlamaConfig) -> BaichuanConfig:
    require(
        config,
        "Baichuan",
        num_key_value_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        attention_bias=False,
        mlp_bias=False,
        rope_parameters=ROTARY,
    )
    return BaichuanConfig(**shared_fields(config, *FIELDS))


def fold_norm_head(name: str, tensor: torch.Tensor, config: BaichuanConfig) -> torch.Tensor:
    if name != "lm_head.weight" or config.z_loss_weight is None:
        return tensor
    return torch.nn.functional.normalize(tensor.float())


PAIR = Pair(
    ours=BaichuanConfig,
    theirs=LlamaConfig,
    modules={
        "model.layers.*.self_attn.W_pack": tuple(f"model.layers.*.self_attn.{part}_proj" for part in "qkv"),
    },
    to_theirs=to_llama,
    to_ours=to_baichuan,
    adjust=fold_norm_head,
)
