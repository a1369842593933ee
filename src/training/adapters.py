"""LoRA adapters of PEFT: added to a model, or loaded with a checkpoint and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from keju.models.accelerate import with_kernels


def add_lora(
    model: PreTrainedModel,
    *,
    task_type: str,
    r: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
) -> PreTrainedModel:
    """The model in a PEFT wrapper; all linear layers get adapters unless `target_modules` names some.

    task_type: "CAUSAL_LM", or "SEQ_CLS" for a scalar model, whose head is trained whole and saved with the adapters.
    Raises ValueError naming the flag for targets that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task_type,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules) if target_modules else "all-linear",
        modules_to_save=[*(["score"] if task_type == "SEQ_CLS" else []), *(modules_to_save or [])] or None,
    )
    try:
        return with_kernels(get_peft_model(model, config))
    except ValueError as error:
        raise ValueError(f"--lora_target_modules: {str(error).splitlines()[0]}") from error


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def train_adapters(model: nn.Module) -> None:
    """Lets the adapters that a checkpoint brought along, and the layers saved with them, be trained; the rest rests."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(module.active_adapters)
        elif isinstance(module, ModulesToSaveWrapper):
            for name in module.active_adapters:
                module.modules_to_save[name].requires_grad_(True)


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Puts saved adapters in the place of the model's own, which must be of the same kind."""
    from peft import PeftModel, set_peft_model_state_dict

    state = load_file(folder / "adapter_model.safetensors")
    if not isinstance(model, PeftModel):  # loaded by transformers, without PEFT's wrapper around it
        state = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    set_peft_model_state_dict(model, state)
