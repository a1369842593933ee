"""What was saved, read back and compared with what is in memory, one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from keju.errors import UserError
from keju.models.checkpoint_files import SAFETENSORS, check_folder, weight_files

ADAPTERS = "adapter_model.safetensors"


class NotAsSaved(RuntimeError):
    """No UserError: transformers.Trainer takes that for a sign of ZeRO-3 and goes on without the weights."""


def save_pretrained(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None, **settings) -> None:
    """model.save_pretrained, but each weight once: of adapters over an embedding of more tokens than its base has PEFT
    gives the layers that are trained whole two names, which transformers then refuses to save.

    state: in the place of the model's own weights. settings: of PEFT's save_pretrained.
    """
    if not (isinstance(model, PreTrainedModel) and hasattr(model, "peft_config")):
        model.save_pretrained(folder, state_dict=None if state is None else dict(state), **settings)
        return
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in adapter_weights(model, state).items()}
    save_file(weights, folder / ADAPTERS, metadata={"format": "pt"})
    (adapters,) = model.peft_config.values()
    adapters.save_pretrained(str(folder))
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def verify_saved(
    model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None, *, apart: Collection[str] = ()
) -> None:
    """Raises NotAsSaved, naming file and tensor, unless the weights in `folder` are those of `model`: every name,
    shape, dtype and bit; of adapters alone where `model` is a base with adapters.

    state: what was given to save_pretrained in the place of the model's own weights (copies under ZeRO-3). To be called
    by the process that wrote, while the model still holds what it saved. apart: names that are not compared.
    """
    if hasattr(model, "peft_config"):
        expected, files = adapter_weights(model, state), {folder / ADAPTERS: ()}
    else:
        try:
            check_folder(folder)
        except UserError as error:
            raise NotAsSaved(str(error)) from error
        expected, files = _weights(model, state), weight_files(folder, SAFETENSORS)
    found: set[str] = set()
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name in apart:
                        continue
                    if name not in expected:
                        raise NotAsSaved(f"{path}: {name} was saved, but the model has no such weight")
                    if not _same(file.get_tensor(name), expected[name]):
                        raise NotAsSaved(f"{path}: {name} reads back as something else than what was saved")
                    found.add(name)
        except (SafetensorError, OSError) as error:
            raise NotAsSaved(f"{path}: what was saved cannot be read: {str(error).splitlines()[0]}") from error
    kept = {_place(expected[name]) for name in found}
    for name in expected.keys() - found - set(apart):
        if _place(expected[name]) not in kept:  # tied weights are saved once
            raise NotAsSaved(f"{folder}: {name} was not saved")


def _weights(model: PreTrainedModel, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Under the names of the files: transformers splits and renames what it has merged while loading."""
    state = dict(model.state_dict() if state is None else state)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, original in tied.items():
        # Copies of one weight count as one, as in what save_pretrained writes.
        if name in state and original in state and _same(state[name], state[original]):
            state[name] = state[original]
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    return revert_weight_conversion(model, state)


def adapter_weights(model: nn.Module, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Under the names of the file."""
    if isinstance(model, PreTrainedModel):  # loaded by transformers, without PEFT's wrapper around it
        found = model.get_adapter_state_dict(state_dict=state)
        copies = (".modules_to_save.", ".original_module.")
        return {f"base_model.model.{name}": found[name] for name in found if not any(part in name for part in copies)}
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, state_dict=None if state is None else dict(state))


def _same(saved: Tensor, tensor: Tensor) -> bool:
    """Bit for bit."""
    tensor = tensor.detach().to(saved.device)
    if saved.dtype != tensor.dtype or saved.shape != tensor.shape:
        return False
    if torch.equal(saved, tensor):
        return True
    if not saved.is_floating_point():
        return False
    return torch.equal(saved.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8))  # NaN


def _place(tensor: Tensor) -> tuple:
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()
