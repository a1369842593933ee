"""Base models in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314): bitsandbytes' NF4, its scales quantised too.

Adapters that were trained over such a base fit no other. They say so in the one field of PEFT's adapter_config.json
that is for what the base model is: PEFT hands `auto_mapping` on as it is, through loading and saving.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from keju.errors import UserError
from keju.models.checkpoint_files import read_object

SETTINGS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
BLOCK_SIZE = 64


def nf4(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """What from_pretrained takes; products are computed in `compute_dtype`. UserError without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise UserError("4-bit weights need bitsandbytes (pip install bitsandbytes)", option="load_in_4bit")
    return BitsAndBytesConfig(**SETTINGS, bnb_4bit_compute_dtype=compute_dtype)


def is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


def base_description(model: PreTrainedModel) -> dict | None:
    """The `auto_mapping` of adapters on this base; None where its weights are whole."""
    return {"base_quantization": SETTINGS} if is_quantized(model) else None


def trained_in_4bit(folder: str | Path) -> bool | None:
    """Whether the adapters of a folder were trained over 4 bits; None for a folder without adapters."""
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    described = read_object(path).get("auto_mapping") or {}
    return "base_quantization" in described


def check_4bit(model: PreTrainedModel) -> PreTrainedModel:
    """A model as loaded, made fit for the CPU. Raises UserError where bitsandbytes computes wrongly."""
    for name, layer in model.named_modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):  # bitsandbytes' own layers
            continue
        # Its first evaluation on such a CPU would round the scales of the weights to bfloat16, for good.
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and layer.in_features % BLOCK_SIZE:
            raise UserError(
                f"on the CPU, bitsandbytes reads rows wrongly that are no multiple of {BLOCK_SIZE} wide; {name} has "
                f"{layer.in_features} inputs",
                option="load_in_4bit",
            )
    return model
