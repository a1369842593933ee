"""Folders of adapters: what is read of them before a model loads, and how a base is made to fit them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from keju.errors import UserError
from keju.models.backbone import DerivedHead, num_embeddings

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# What a LoraConfig may say. Everything else must be left at what PEFT has it default to: nothing.
KNOWN = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
        *("auto_mapping", "runtime_config", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
        *("fan_in_fan_out", "use_rslora", "use_dora", "bias", "modules_to_save", "init_lora_weights", "rank_pattern"),
        *("alpha_pattern", "layers_to_transform", "layers_pattern", "loftq_config", "eva_config", "corda_config"),
        *("lora_ga_config", "megatron_core", "ensure_weight_tying", "lora_bias", "qalora_group_size"),
        "target_parameters",
    }
)
# Starts that take a part out of the base, which therefore is not the one that the folder names.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


def holds_adapters(name: str) -> bool:
    return (Path(name) / SETTINGS).is_file()


def check_kind(settings: Mapping[str, Any], folder: str) -> None:
    """Raises UserError for adapters of a kind that is not loaded, trained or merged here.

    settings: the adapter_config.json of `folder`.
    """
    why = _unsupported(settings)
    if why is not None:
        raise UserError(f"{folder}: {why}", option="model_name_or_path")


def _unsupported(settings: Mapping[str, Any]) -> str | None:
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        return f"adapters of the kind {kind} are not supported; LoRA, rsLoRA and DoRA are"
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGE_THE_BASE):
        return (
            f"its adapters stand on a base that {start} has changed; save them again for the untouched base "
            "(save_pretrained of PEFT with path_initial_model_for_weight_conversion)"
        )
    if settings.get("bias", "none") != "none":
        return f'adapters with trained biases of the base ("bias": "{settings["bias"]}") are not supported'
    others = sorted(
        name for name, value in settings.items() if name not in KNOWN and value not in (None, False, [], {})
    )
    return f"adapters with {others[0]} are not supported" if others else None


def fit_embeddings(model: PreTrainedModel, folder: str) -> None:
    """Gives a base as many tokens as adapters have that were trained with more, and saved with embedding and head.

    Raises UserError where one of the two is not saved with them, and for weights that cannot be read.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    shapes = _shapes(folder)
    rows = {
        module: shapes[key][0]
        for module in (embedding, head)
        if module is not None
        for key in (f"{PREFIX}{names[module]}{leaf}.weight" for leaf in ("", ".base_layer"))
        if key in shapes
    }
    count = num_embeddings(model)
    if set(rows.values()) <= {count}:
        return
    if rows.get(embedding) is None or (head is not None and rows.get(head) != rows[embedding]):
        raise UserError(
            f"{folder}: its adapters are of {max(rows.values())} tokens, the base has {count}, and not both embedding "
            "and head of that size are saved with them",
            option="model_name_or_path",
        )
    model.resize_token_embeddings(rows[embedding], mean_resizing=False)
    if isinstance(head, DerivedHead):  # transformers makes a plain one
        model.get_output_embeddings().__class__ = type(head)


def check_weights(adapted: nn.Module, folder: str) -> None:
    """Raises UserError unless a folder has the weights, by name and shape, that a model in PEFT's wrapper saves of its
    adapters; PEFT itself overlooks what is missing or left over."""
    from peft import get_peft_model_state_dict

    shapes = _shapes(folder)
    expected = {name: list(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if name not in shapes and ".base_layer." in name:  # that of the base, which some versions save as well
            continue
        if shapes.get(name) != expected.get(name):
            found = "is missing" if name not in shapes else f"has shape {shapes[name]}"
            wanted = f", expected {expected[name]}" if name in expected else ", which belongs to none of its layers"
            raise UserError(f"{folder}: {name} {found}{wanted}", option="model_name_or_path")


def _shapes(folder: str) -> dict[str, list[int]]:
    try:
        with safe_open(Path(folder) / WEIGHTS, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no {WEIGHTS}, where the weights of its adapters should be", option="model_name_or_path"
        ) from error
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{Path(folder) / WEIGHTS}: its weights are damaged: {reason}", option="model_name_or_path"
        ) from error
