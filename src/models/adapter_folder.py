"""Folders of adapters: what is read of them before a model loads, and how a base is made to fit them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from keju.models.backbone import num_embeddings

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What a LoraConfig may say. Everything else must be left at what PEFT has it default to: nothing.
KNOWN = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
        *("auto_mapping", "runtime_config", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
        *("fan_in_fan_out", "use_rslora", "use_dora", "bias", "modules_to_save", "init_lora_weights", "rank_pattern"),
        *("alpha_pattern", "layers_to_transform", "layers_pattern", "loftq_config", "eva_config", "corda_config"),
        *(
            "lora_ga_config",
            "megatron_core",
            "ensure_weight_tying",
            "lora_bias",
            "qalora_group_size",
            "target_parameters",
        ),
    }
)
# Starts that take a part out of the base, which therefore is not the one that the folder names.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


def holds_adapters(name: str) -> bool:
    return (Path(name) / SETTINGS).is_file()


def check_kind(settings: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for adapters of a kind that is not loaded, trained or merged here.

    settings: an adapter_config.json. where: how errors call the folder.
    """
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"{where}: adapters of the kind {kind} are not supported; LoRA, rsLoRA and DoRA are")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGE_THE_BASE):
        raise ValueError(
            f"{where}: its adapters stand on a base that {start} has changed; save them again for the untouched base "
            "(save_pretrained of PEFT with path_initial_model_for_weight_conversion)"
        )
    if settings.get("bias", "none") != "none":
        raise ValueError(
            f'{where}: adapters with trained biases of the base ("bias": "{settings["bias"]}") are not supported'
        )
    others = sorted(
        name for name, value in settings.items() if name not in KNOWN and value not in (None, False, [], {})
    )
    if others:
        raise ValueError(f"{where}: adapters with {others[0]} are not supported")


def fit_embeddings(model: PreTrainedModel, folder: str, *, flag: str = "--model_name_or_path") -> None:
    """Gives a base as many tokens as adapters have that were trained with more, and saved with their embedding.

    Raises ValueError where the head of such adapters is not saved with them.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as file:
        rows = {
            module: file.get_slice(key).get_shape()[0]
            for module in (embedding, head)
            for key in file.keys()  # noqa: SIM118
            if module is not None
            and key in (f"base_model.model.{names[module]}{leaf}.weight" for leaf in ("", ".base_layer"))
        }
    count = num_embeddings(model)
    if set(rows.values()) <= {count}:
        return
    if rows.get(embedding) is None or (head is not None and rows.get(head) != rows[embedding]):
        raise ValueError(
            f"{flag}: {folder}: its adapters are of {max(rows.values())} tokens, the base has {count}, and not both "
            "embedding and head of that size are saved with them"
        )
    model.resize_token_embeddings(rows[embedding], mean_resizing=False)
