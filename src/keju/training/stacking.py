"""Adapters beside others that stay as they are (--adapters stack), and the one folder that holds both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from keju.errors import UserError, renamed_options
from keju.models.adapter_folder import SETTINGS, WEIGHTS
from keju.models.checkpoint_files import read_object
from keju.models.configurations import base_of
from keju.models.loading import DTYPES
from keju.models.quantization import nf4, trained_in_4bit

TRAINED, START = "default", "start"  # what PEFT calls the adapters
# Settings of adapters whose product is not all that they add.
NOT_LOW_RANK = ("use_dora", "modules_to_save", "lora_bias", "target_parameters", "trainable_token_indices")


class Beside(NamedTuple):
    """What a layer adds to the untouched base beside its trained adapters: scale * b @ a.

    scale: that of the trained adapters, where the layer has some. a [rank, in], b [out, rank].
    """

    a: Tensor
    b: Tensor
    scale: float


def check_stack(name: str, given: Mapping[str, Any]) -> None:
    """Raises UserError where the adapters in `name`, or new ones with the settings `given`, cannot be put together to
    one folder of adapters. To be called before a model loads."""
    if not given["use_peft"]:
        raise UserError("--adapters stack: new adapters are trained beside those of the start; it needs --use_peft")
    settings = read_object(Path(name) / SETTINGS)
    for key in NOT_LOW_RANK:
        if settings.get(key):
            raise UserError(
                f"--adapters stack: the adapters in {name} have {key}, so that others cannot be added to them in one "
                "folder; take --adapters merge"
            )
    for flag, plain in (("use_dora", False), ("lora_modules_to_save", None), ("init_lora_weights", "default")):
        if given[flag] not in (plain, *(["gaussian"] if flag == "init_lora_weights" else [])):
            raise UserError(f"--{flag}: is not for adapters beside others (--adapters stack); take --adapters merge")


def load_stacked(
    load: Callable[..., PreTrainedModel],
    name: str,
    *,
    base: str | None,
    dtype: str,
    quantization: BitsAndBytesConfig | None,
    **settings,
) -> nn.Module:
    """The base of the adapters in `name`, with these on it under the name START, frozen, in a PEFT wrapper.

    load: load_causal_lm, say; it gets `settings`. Raises UserError where the folder holds something else.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    in_4bit = trained_in_4bit(name)
    if quantization is not None and not in_4bit:
        raise UserError(f"the adapters in {name} were trained on a base of whole weights", option="load_in_4bit")
    if in_4bit and quantization is None:
        with renamed_options(load_in_4bit="model_name_or_path"):  # these adapters ask for it, and no option
            quantization = nf4(DTYPES[dtype])
    model = load(base_of(name, base), dtype=dtype, quantization=quantization, **settings)
    stacked = get_peft_model(model.requires_grad_(False), LoraConfig.from_pretrained(name), adapter_name=START)
    state, own = load_file(Path(name) / WEIGHTS), get_peft_model_state_dict(stacked, adapter_name=START)
    for key in sorted(state.keys() | own.keys()):
        if key not in state or key not in own or state[key].shape != own[key].shape:
            raise UserError(
                f"{name}: {key} is not that of these adapters on their base; take --adapters merge",
                option="model_name_or_path",
            )
        if ".lora_" not in key and not torch.equal(state[key], own[key].to(state[key])):
            raise UserError(
                f"{name}: {key} is not that of the base; take --adapters merge", option="model_name_or_path"
            )
    set_peft_model_state_dict(stacked, state, adapter_name=START)
    return stacked.requires_grad_(False)


def is_stacked(model: nn.Module) -> bool:
    return START in getattr(model, "peft_config", ())


def add_beside(stacked: nn.Module, config: Any) -> nn.Module:
    """New adapters in a `load_stacked` model; they alone are trained."""
    config.base_model_name_or_path = stacked.peft_config[START].base_model_name_or_path
    stacked.add_adapter(TRAINED, config)
    stacked.base_model.set_adapter([START, TRAINED])
    stacked.active_adapter = TRAINED
    for name, parameter in stacked.named_parameters():
        if START in name.split("."):
            parameter.requires_grad_(False)
    return stacked


def parts_beside(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Beside]:
    """What stands beside the trained adapters, by the name of the layer: the adapters of the start, in the scale of the
    trained ones.

    state: of a model that is in pieces, with the weights whole.
    """
    found = {}
    for name, layer in lora_layers(model).items():
        if START not in layer.scaling:
            continue
        a, b = (_tensor(layer, part, START, name, state) for part in "AB")
        scale = layer.scaling.get(TRAINED, layer.scaling[START])
        found[name] = Beside(a, b * (layer.scaling[START] / scale), scale)
    return found


def file_keys(layer: nn.Module, name: str) -> tuple[str, str]:
    """What A and B of a layer are called in a folder of adapters."""
    if len(layer.lora_embedding_A):
        return f"{name}.lora_embedding_A", f"{name}.lora_embedding_B"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


def lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _tensor(layer: nn.Module, part: str, adapter: str, name: str, state: Mapping[str, Tensor] | None) -> Tensor:
    is_embedding = len(layer.lora_embedding_A) > 0
    key = f"lora_embedding_{part}.{adapter}" if is_embedding else f"lora_{part}.{adapter}.weight"
    if state is not None and f"{name}.{key}" in state:
        return state[f"{name}.{key}"].detach()
    return layer.get_parameter(key).detach()
