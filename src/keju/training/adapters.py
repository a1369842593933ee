"""LoRA adapters of PEFT: added to a model, or loaded with a checkpoint and trained on."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from keju.errors import UserError
from keju.models.accelerate import with_kernels
from keju.models.adapter_folder import PREFIX, SETTINGS, WEIGHTS
from keju.models.backbone import check_head, unwrapped
from keju.models.quantization import base_description, is_quantized
from keju.models.saved_weights import NotAsSaved, adapter_weights, save_pretrained, verify_saved
from keju.training.stacking import Beside, add_beside, file_keys, is_stacked, lora_layers, parts_beside

# Of sums of products in float32, relative to those of their absolute values.
ROUNDING = 1e-4
NAME = "default"
ALL_LINEAR = ("all-linear", "all")
BUFFERS = (".start_A", ".start_B")


def add_lora(
    model: PreTrainedModel,
    *,
    task_type: str,
    r: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    init_lora_weights: str = "default",
    original: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """The model in a PEFT wrapper; all linear layers get adapters unless `target_modules` names some.

    task_type: "CAUSAL_LM", or "SEQ_CLS" for a scalar model, whose head is trained whole and saved with the adapters.
    use_rslora: the scale is alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732). use_dora: the length of each row of
    the weights is trained by itself (Liu et al. 2024, arXiv:2402.09353).
    init_lora_weights: where A and B start. "default": B = 0; "gaussian": that, and A normal. "pissa", or
    "pissa_niter_<n>" by n steps of a randomised SVD: the r largest singular values of the weights, which are taken out
    of the base (Meng et al. 2024, arXiv:2404.02948). "loftq": B A is the best approximation of rank r of what 4 bits
    lose of the weights of `original`: one step of Li et al. 2023 (arXiv:2310.08659), so that the base stays as it is.
    target_modules: names or ends of names of layers; "all-linear" or "all" for all linear layers but the head, beside
    which others may be named.
    Raises UserError naming the flag for targets that the model does not have, and for starts that it cannot have.
    """
    from peft import LoraConfig, get_peft_model

    if task_type == "SEQ_CLS" and "score" in (target_modules or ()):
        raise UserError("--lora_target_modules score: the head of a reward model is trained whole in any case")
    is_pissa, is_loftq = init_lora_weights.startswith("pissa"), init_lora_weights == "loftq"
    if is_pissa and is_quantized(model):
        raise UserError("--init_lora_weights pissa changes the base, which --load_in_4bit rounds; loftq is for that")
    if is_loftq and not is_quantized(model):
        raise UserError("--init_lora_weights loftq makes up for what 4 bits lose; it needs --load_in_4bit")
    if is_loftq and use_dora:
        raise UserError("--use_dora takes its lengths from the 4-bit base, which --init_lora_weights loftq corrects")
    config = LoraConfig(
        task_type=task_type,
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_targets(model, task_type, target_modules or ["all-linear"]),
        modules_to_save=[*(["score"] if task_type == "SEQ_CLS" else []), *(modules_to_save or [])] or None,
        use_rslora=use_rslora,
        use_dora=use_dora,
        init_lora_weights=True if init_lora_weights == "default" or is_loftq else init_lora_weights,
        auto_mapping=base_description(model),
    )
    try:
        adapted = add_beside(model, config) if is_stacked(model) else get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"--lora_target_modules: {str(error).splitlines()[0]}") from error
    try:
        check_head(adapted)
    except UserError as error:
        raise UserError(f"--lora_target_modules: {error}") from error
    if is_pissa:
        _keep_starts(adapted)
    elif is_loftq:
        _approximate(adapted, original)
    return with_kernels(adapted)


def _targets(model: nn.Module, task_type: str, names: Sequence[str]) -> list[str] | str:
    """As PEFT reads them: it knows all linear layers (but the head) by a word, where that stands alone."""
    others = [name for name in names if name.lower() not in ALL_LINEAR]
    if len(others) == len(names):
        return others
    if not others:
        return "all-linear"
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    linear = _maybe_include_all_linear_layers(
        LoraConfig(task_type=task_type, target_modules="all-linear"), unwrapped(model)
    )
    return sorted({*linear.target_modules, *others})


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


def train_on(model: nn.Module, name: str, given: Mapping[str, Any]) -> None:
    """Trains the adapters that came with the checkpoint `name`, as they are, and says so.

    given: flags of new adapters with their values, but for those that are left at their defaults. Raises UserError
    naming one that is not so of these adapters.
    """
    (config,) = model.peft_config.values()
    own = config.to_dict() | {"lora_r": config.r, "lora_target_modules": config.target_modules}
    own["lora_modules_to_save"] = config.modules_to_save
    for flag, value in given.items():
        is_same = set(value) == set(own[flag] or ()) if isinstance(value, list) else value == own[flag]
        if flag == "init_lora_weights" or not is_same:
            raise UserError(
                f"--{flag}: {name} holds adapters, which are trained on as they are; leave it out, or add new ones to "
                "what they are merged into (--adapters merge), or beside them (--adapters stack)"
            )
    train_adapters(model)
    print(f"The adapters in {name} (rank {config.r}, alpha {config.lora_alpha:g}) are trained on.")


def apply_loraplus(optimizer: torch.optim.Optimizer, model: nn.Module, ratio: float) -> None:
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the B of adapters get groups of their own in `optimizer`, whose
    learning rate is `ratio` times that of the group they were in. To be called before a scheduler is made.

    Raises UserError naming the flag where the optimizer trains no B, or the ratio is not above 0.
    """
    if ratio == 1:
        return
    if not ratio > 0:
        raise UserError(f"--loraplus_lr_ratio: must be above 0, got {ratio:g}")
    of_b = {id(parameter) for name, parameter in model.named_parameters() if ".lora_B." in name}
    groups = list(optimizer.param_groups)
    if not any(id(parameter) in of_b for group in groups for parameter in group["params"]):
        raise UserError("--loraplus_lr_ratio: there are no adapters whose B could be trained faster")
    for group in groups:
        faster = [parameter for parameter in group["params"] if id(parameter) in of_b]
        if faster:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_b]
            optimizer.add_param_group({**group, "params": faster, "lr": group["lr"] * ratio})


# -- folders -----------------------------------------------------------------------------------------------------------


def save_model(model: nn.Module, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """save_pretrained, so that the folder fits the untouched base model.

    PiSSA trains on W - s B0 A0. On W that is LoRA of twice the rank: s (B A - B0 A0) = s [B, -B0] [A; A0]. So are
    adapters beside others, of the sum of the ranks.
    """
    chosen = {"selected_adapters": [NAME]} if is_stacked(model) else {}
    save_pretrained(model, folder, state_dict, **chosen)
    beside, layers = _beside(model, state_dict), lora_layers(model) if has_adapters(model) else {}
    if not beside:
        return
    state = {key: value for key, value in load_file(folder / WEIGHTS).items() if not key.endswith(BUFFERS)}
    dtype = next(iter(state.values())).dtype
    for name, part in beside.items():
        of_a, of_b = file_keys(layers[name], name)
        a, b = (tensor.to("cpu", dtype) for tensor in (part.a, part.b))
        state[of_a] = torch.cat([state[of_a], a]) if of_a in state else a.contiguous()
        state[of_b] = torch.cat([state[of_b], b], dim=1) if of_b in state else b.contiguous()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    _joined_config(model, beside).save_pretrained(str(folder))


def verify_model(model: nn.Module, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """verify_saved of what save_model has written, which where adapters stand beside something (after PiSSA, or beside
    others) are other numbers than those in memory: what they add to the untouched base must be what the model adds to
    it, to within rounding."""
    beside, layers = _beside(model, state_dict), lora_layers(model) if has_adapters(model) else {}
    names = {name: file_keys(layers[name], name) for name in beside}
    others = {f"{name}{buffer}" for name in beside for buffer in BUFFERS}
    verify_saved(model, folder, state_dict, apart=others.union(*names.values()))
    if not beside:
        return
    trained, saved = adapter_weights(model, state_dict), load_file(folder / WEIGHTS)
    config = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    for name, part in beside.items():
        if any(key not in saved for key in names[name]):
            raise NotAsSaved(f"{folder / WEIGHTS}: the adapters of {name} were not saved")
        beside_a, beside_b = part.a.float(), part.b.float()
        file_a, file_b = (saved[key].to(beside_a) for key in names[name])
        layer = name.removeprefix(PREFIX)
        rank = config["rank_pattern"].get(layer, config["r"])
        alpha = config["alpha_pattern"].get(layer, config["lora_alpha"])
        if file_a.shape[0] != rank or file_b.shape != (len(beside_b), rank):
            raise NotAsSaved(f"{folder / WEIGHTS}: the adapters of {name} are not of the rank in {SETTINGS}")
        wanted, size = beside_b @ beside_a, beside_b.abs() @ beside_a.abs()
        if names[name][0] in trained:
            a, b = (trained[key].to(beside_a) for key in names[name])
            wanted, size = wanted + b @ a, size + b.abs() @ a.abs()
        scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
        if not ((scale * (file_b @ file_a) - part.scale * wanted).abs() <= ROUNDING * part.scale * size).all():
            raise NotAsSaved(f"{folder / WEIGHTS}: {name} reads back as something else than what was trained")


def load_adapters(model: nn.Module, folder: Path) -> None:
    """Puts saved adapters in the place of the model's own, which must be of the same kind."""
    from peft import PeftModel, set_peft_model_state_dict

    state = load_file(folder / WEIGHTS)
    for name, layer in _started_layers(model).items():
        _restart(layer, state, f"{name}.lora_A.weight", f"{name}.lora_B.weight")
    if is_stacked(model):  # those beside them are in the model already
        for name, layer in lora_layers(model).items():
            of_a, of_b = file_keys(layer, name)
            a, b, rank = state.pop(of_a), state.pop(of_b), layer.r.get(NAME)
            if rank is not None:
                state |= {of_a: a[:rank].contiguous(), of_b: b[:, :rank].contiguous()}
    if not isinstance(model, PeftModel):  # loaded by transformers, without PEFT's wrapper around it
        state = {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}
    set_peft_model_state_dict(model, state)


def _beside(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None) -> dict[str, Beside]:
    """What each layer adds to the untouched base beside the adapters that are trained."""
    if is_stacked(model):
        return parts_beside(model, state_dict)
    started = _started_layers(model)
    return {name: Beside(layer.start_A, -layer.start_B, layer.scaling[NAME]) for name, layer in started.items()}


def _joined_config(model: nn.Module, beside: Mapping[str, Beside]) -> Any:
    """The settings of adapters that hold what stands beside them as well: ranks add up, scales stay."""
    config = copy.deepcopy(model.peft_config[NAME])
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in lora_layers(model).items():
        rank = layer.r.get(NAME, 0) + (len(beside[name].a) if name in beside else 0)
        scale = beside[name].scale if name in beside else layer.scaling[NAME]
        ranks[name.removeprefix(PREFIX)] = rank
        alphas[name.removeprefix(PREFIX)] = scale * (math.sqrt(rank) if config.use_rslora else rank)
        if NAME not in layer.r:
            config.target_modules = sorted(layer.removeprefix(PREFIX) for layer in lora_layers(model))
    config.r, config.lora_alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {name: alpha for name, alpha in alphas.items() if alpha != config.lora_alpha}
    config.init_lora_weights = config.inference_mode = True
    return config


# -- PiSSA and LoftQ ---------------------------------------------------------------------------------------------------


def _keep_starts(model: nn.Module) -> None:
    """Each layer of PiSSA remembers A0 [r, in] and B0 [out, r], which were taken out of its base."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            places.setdefault(id(parameter), []).append(name)
    for name, layer in lora_layers(model).items():
        if len(places[id(layer.get_base_layer().weight)]) > 1:
            raise UserError(f"--init_lora_weights pissa: the weights of {name} belong to another layer, too")
        layer.register_buffer("start_A", layer.lora_A[NAME].weight.detach().clone())
        layer.register_buffer("start_B", layer.lora_B[NAME].weight.detach().clone())


@torch.no_grad()
def _restart(layer: nn.Module, state: dict[str, torch.Tensor], name_a: str, name_b: str) -> None:
    """Takes [A; A0] and [B, -B0] of a checkpoint apart again. Another machine may have found other A0 and B0 than this
    one; the base gets back the difference."""
    r = layer.r[NAME]
    start_a, start_b = state[name_a][r:].to(layer.start_A), -state[name_b][:, r:].to(layer.start_B)
    state[name_a], state[name_b] = state[name_a][:r].contiguous(), state[name_b][:, :r].contiguous()
    if torch.equal(start_a, layer.start_A) and torch.equal(start_b, layer.start_B):
        return
    weight = layer.get_base_layer().weight
    weight += (layer.scaling[NAME] * (layer.start_B @ layer.start_A - start_b @ start_a)).to(weight)
    layer.start_A, layer.start_B = start_a, start_b


@torch.no_grad()
def _approximate(model: nn.Module, original: nn.Module) -> None:
    """LoftQ: B A of each 4-bit layer is the best approximation of rank r of what the layer lost."""
    from peft.utils.integrations import dequantize_module_weight

    for name, layer in lora_layers(model).items():
        base = layer.get_base_layer()
        if not hasattr(base.weight, "quant_state"):  # a layer that was left whole
            continue
        whole = original.get_submodule(name.removeprefix("base_model.model.")).weight
        lost = whole.to(base.weight.device).float() - dequantize_module_weight(base).float()
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        a, b, r = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.r[NAME]
        roots = (values[:r] / layer.scaling[NAME]).sqrt()
        a.copy_(roots[:, None] * right[:r])
        b.copy_(left[:, :r] * roots)


def _started_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that PiSSA started, by name."""
    return {name: layer for name, layer in model.named_modules() if "start_A" in layer._buffers}
