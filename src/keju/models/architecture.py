"""Which architectures token trees can be computed with, seen from a configuration before any weight is allocated.

A tree equals its single rows where every layer attends through transformers' attention interface, to all tokens in
front. What else a layer may do is refused here where it can be seen: by the fields of config.json, and by the modules
that are built from it without memory. keju.training.tree_guard compares numbers once the weights are there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed

from keju.errors import UserError

MAX_LAYERS = 2048
# A model may have so many times the numbers that its files hold; then config.json is not theirs.
MAX_GROWTH = 8
# Layers of these kinds attend to all tokens in front, or to all of them within a window.
WHOLE = frozenset({"full_attention", "attention", "dense", "sparse", "moe", "mlp"})
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
# Others carry a state from token to token, which does not know where a branch ends.
STATES = frozenset({"linear_attention", "mamba", "mamba2", "conv", "hybrid", "hybrid_sliding", "recurrent", "rwkv"})
STATE_PARAMETERS = frozenset({"A_log", "time_decay"})


class RowLimit(NamedTuple):
    """Rows of up to `length` tokens are computed exactly; `reason`: what differs beyond."""

    length: int
    reason: str


def check_quantization(config: PretrainedConfig | dict) -> None:
    """Raises UserError for a configuration whose checkpoint does not hold plain numbers."""
    fields = config if isinstance(config, dict) else config.to_dict()
    for part in (fields, *(value for value in fields.values() if isinstance(value, dict))):
        settings = part.get("quantization_config") or part.get("compression_config")
        if settings:
            method = settings.get("quant_method") if isinstance(settings, dict) else settings
            raise UserError(
                f"its weights are quantised ({method or 'unknown method'}); neither trained nor converted: take the "
                "checkpoint of full-precision weights"
            )


def check_layers(config: PretrainedConfig) -> None:
    """Raises UserError for kinds of layers that cannot compute trees, and for absurd numbers of layers."""
    text = config.get_text_config(decoder=True)
    for name, value in text.to_dict().items():
        if name.endswith(("layers", "n_layer", "num_layer")) and isinstance(value, int) and value > MAX_LAYERS:
            raise UserError(f"config.json: {name} {value} is absurd (at most {MAX_LAYERS})")
    for kind in sorted(_layer_kinds(text) - WHOLE - set(WINDOWS)):
        if kind in STATES:
            raise _state_error(kind)
        raise UserError(
            f"its layers of kind {kind} choose by rules of their own which tokens they attend to, which token trees do "
            "not support"
        )
    if getattr(text, "index_topk", None):
        raise UserError(
            f"its layers attend to the {text.index_topk} tokens that an indexer chooses (sparse attention), which "
            "token trees do not support"
        )
    if getattr(text, "attn_logit_softcapping", None):
        raise UserError("its layers cap attention scores (softcap), which token trees do not support")


def check_modules(model: PreTrainedModel) -> None:
    """Raises UserError for modules in the layers of `model`, which may be on the meta device, that carry a state."""
    for layer in layers_of(model):
        for module in layer.modules():
            own = {name for name, _ in module.named_parameters(recurse=False)}
            if isinstance(module, nn.Conv1d) or own & STATE_PARAMETERS:
                raise _state_error(_holder(layer, module))
            if "sinks" in own:
                raise UserError(
                    f"its layers of kind {type(module).__name__} attend to learned sinks, which token trees do not "
                    "support"
                )


def row_limit(config: PretrainedConfig) -> RowLimit | None:
    """The longest row whose layers see every token in front, at angles that do not depend on the row's length."""
    text = config.get_text_config(decoder=True)
    limits = []
    kinds = _layer_kinds(text)
    # A field that the class does not know is a remainder in config.json, and rules nothing.
    if not kinds and hasattr(type(text), "sliding_window") and getattr(text, "use_sliding_window", True):
        kinds = {"sliding_attention"}
    for kind, name in WINDOWS.items():
        window = getattr(text, name, None)
        if kind in kinds and window:
            limits.append(RowLimit(window, f"its layers of kind {kind} see {window} tokens"))
    for rope in _rope_settings(text):
        kind, known = rope.get("rope_type", rope.get("type")), getattr(text, "max_position_embeddings", None)
        if kind == "longrope":
            known = rope.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", known
            )
        if kind in ("dynamic", "longrope") and known:
            limits.append(
                RowLimit(known, f"its rotary positions ({kind}) depend on the length of rows of more than {known}")
            )
    return min(limits, default=None)


def check_row(config: PretrainedConfig, length: int) -> None:
    """Raises UserError (max_length) for rows of `length` tokens where token trees would not equal them."""
    limit = row_limit(config)
    if limit is not None and length > limit.length:
        raise UserError(
            f"rows of up to {length} tokens, but {limit.reason}; in token trees rows have at most {limit.length}",
            option="max_length",
        )


def without_weights(auto_class, config: PretrainedConfig) -> PreTrainedModel:
    """The model with its names and shapes, and no memory for its weights. UserError where sizes are impossible."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _uncut():
            return auto_class.from_config(config)
    except (RuntimeError, OverflowError, MemoryError, TypeError, ValueError, ArithmeticError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if reason.startswith("Unrecognized configuration class"):
            reason = f"{type(config).__name__} has no {auto_class.__name__.removeprefix('Auto')}"
        raise UserError(f"no model can be built from its config.json: {reason}") from error


def num_numbers(model: PreTrainedModel) -> int:
    """Numbers in the parameters of a model; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_size(model: PreTrainedModel, *, available: int | None, element_size: int) -> None:
    """Raises UserError for a model without weights that is absurdly larger than its files, which hold `available`
    numbers, or, where there are none (None), than the memory of this machine."""
    count = num_numbers(model)
    if available is not None:
        if count > MAX_GROWTH * max(available, 1):
            raise UserError(f"config.json describes {count} weights, but the files hold {available}")
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if count * element_size > memory:
        raise UserError(
            f"config.json describes {count} weights, {count * element_size / 1e9:.0f} GB; this machine has "
            f"{memory / 1e9:.0f} GB of memory"
        )


@contextmanager
def _uncut() -> Iterator[None]:
    """ZeRO-3 takes weights apart as they are made; here there are none."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    config = config() if config is not None else None
    if config is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


def _state_error(kind: str) -> UserError:
    return UserError(
        f"its layers of kind {kind} carry a state along the row, from one branch of a token tree into the next; this "
        "architecture is not supported yet"
    )


def _layer_kinds(text: PretrainedConfig) -> set[str]:
    for name in ("layer_types", "layers_block_type", "block_types"):
        kinds = getattr(text, name, None)
        if isinstance(kinds, (list, tuple)) and kinds:
            return set(map(str, kinds))
    return set()


def _rope_settings(text: PretrainedConfig) -> list[dict]:
    """Those of all layers, or of each kind of layer."""
    settings = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(settings, dict):
        return []
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def layers_of(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The layers of the language model; towers for images or sound have other numbers of them."""
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            yield from module


def _holder(layer: nn.Module, inner: nn.Module) -> str:
    """The class of the part of a layer that `inner` is in."""
    for part in layer.children():
        if part is not inner and any(module is inner for module in part.modules()):
            return type(part).__name__
    return type(layer).__name__
