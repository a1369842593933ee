"""Forward passes over packed trees, for any causal language model of transformers."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from keju.errors import UserError
from keju.kernels.column_mask import ColumnMask
from keju.kernels.linear_cross_entropy import linear_cross_entropy
from keju.kernels.linear_logprob import LinearLogprob, linear_logprob
from keju.models.architecture import check_row, row_limit
from keju.models.layers import PEFT_LORA
from keju.models.prefix_lm import PrefixLM

PEFT_WRAPPERS = "peft.utils.other"


class DerivedHead(nn.Linear):
    """An LM head whose matrix is computed from its weight (the NormHead of Baichuan2)."""

    def effective_weight(self) -> torch.Tensor:
        """[vocab, H]: the matrix that multiplies hidden states."""
        raise NotImplementedError

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.effective_weight())


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper (its adapters stay active: they sit in its layers)."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def backbone_of(model: nn.Module) -> nn.Module:
    """The part of a transformers model that ends in its last hidden states."""
    model = unwrapped(model)
    return getattr(model, model.base_model_prefix)


def num_embeddings(model: nn.Module) -> int:
    """The rows of the token embedding, with or without adapters on it, and where ZeRO-3 keeps it in pieces."""
    embedding = unwrapped(model).get_input_embeddings()
    return getattr(embedding, "base_layer", embedding).num_embeddings


def tree_layout(backbone: nn.Module, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """position_ids [1, T] and visible_from [T] of a packed row as this model has them.

    For prefix language models position_ids are [1, 2, T], and the tokens of a context see each other. Their start token
    must stand in the trunk of a tree, where all its branches see it.
    """
    if not isinstance(backbone, PrefixLM):
        return batch.position_ids, batch.visible_from
    layout = backbone.layout(batch.input_ids[0], batch.position_ids[0], batch.token_tree, batch.num_trees)
    visible_from = torch.where(layout.in_context, layout.start[batch.token_tree], batch.visible_from)
    return layout.position_ids[None], visible_from


def tree_hidden_states(model: nn.Module, batch) -> torch.Tensor:
    """[T, H]: the last hidden states of a packed row (`keju.trees.PackedBatch`), before any head.

    `model`: a transformers model with a head (causal LM or sequence classification), loaded with
    attn_implementation="keju".
    """
    backbone = backbone_of(model)
    position_ids, visible_from = tree_layout(backbone, batch)
    limited = {}
    if row_limit(unwrapped(model).config) is not None:
        limited["longest_row"] = int(batch.position_ids.max()) + 1
        check_row(unwrapped(model).config, limited["longest_row"])
    output = backbone(
        input_ids=batch.input_ids,
        position_ids=position_ids,
        # A mask that is already 4-D is handed on untouched: no [T, T] mask is built, and the column mask rules.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device),
        column_mask=ColumnMask(visible_from, batch.visible_until),
        use_cache=False,
        **limited,
    )
    return output.last_hidden_state[0]


def head_logprobs(
    model: nn.Module,
    hidden: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> LinearLogprob:
    """Log-probabilities of `target` int64 [N] by the LM head of `model` from `hidden` [N, H]; see linear_logprob."""
    head = _head(model, hidden)
    return linear_logprob(
        head.hidden,
        head.weight,
        target,
        head.bias,
        temperature=temperature,
        with_entropy=with_entropy,
        **head.transform,
    )


class _Head(NamedTuple):
    """hidden [N, I] and weight [vocab, I], whose product the logits are; bias [vocab]; what is done to the logits."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    transform: dict[str, Any]


def check_head(model: nn.Module) -> None:
    """Raises UserError for an LM head that computes something else than the passes over trees know of: they multiply
    by its weight, without calling it."""
    head = unwrapped(model).get_output_embeddings()
    if head is not None:  # the head of a scalar model is called
        _head_layers(head)


def _head(model: nn.Module, hidden: torch.Tensor) -> _Head:
    """The LM head over hidden [N, H].

    Adapters on it make both matrices wider, by their rank: W h + s B A h is one product, of [W, s B] and [h, A h].
    """
    model = unwrapped(model)
    head, lora = _head_layers(model.get_output_embeddings())
    config = model.config.get_text_config()
    # What current transformers models do to their logits after the head: Gemma 2 caps, Cohere and Granite scale.
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    weight = head.effective_weight() if isinstance(head, DerivedHead) else head.weight
    bias = getattr(head, "bias", None)
    transform = {"scale": scale, "softcap": getattr(config, "final_logit_softcapping", None)}
    if lora is None or lora.disable_adapters or lora.merged:
        return _Head(hidden, weight, bias, transform)
    inputs, weights = [hidden], [weight]
    for name in filter(lora.lora_A.__contains__, lora.active_adapters):
        a, b = lora.lora_A[name], lora.lora_B[name]
        inputs.append(a(lora.lora_dropout[name](hidden).to(a.weight.dtype)).to(hidden.dtype))
        weights.append(lora.scaling[name] * b.weight.to(weight.dtype))
        if b.bias is not None:
            added = lora.scaling[name] * b.bias.to(weight.dtype)
            bias = added if bias is None else bias + added
    return _Head(torch.cat(inputs, dim=-1), torch.cat(weights, dim=-1), bias, transform)


def _head_layers(head: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """-> (the layer whose weight is that of the head, the layer of PEFT around it that adds adapters to it)."""
    layers, lora = [head], None
    wrappers = sys.modules.get(PEFT_WRAPPERS)
    if wrappers is not None and isinstance(head, wrappers.ModulesToSaveWrapper):
        active = head.active_adapters
        is_original = head.disable_adapters or not active or active[0] not in head.modules_to_save
        head = head.original_module if is_original else head.modules_to_save[active[0]]
        layers.append(head)
    peft = sys.modules.get(PEFT_LORA)
    if peft is not None and isinstance(head, (peft.Linear, peft.Embedding)):
        layer, head = head, head.base_layer
        layers.append(head)
        if isinstance(layer, peft.Linear):  # on an embedding that is the head, adapters change what is embedded alone
            lora = layer
            kinds = [name for name in layer.active_adapters if name in layer.lora_variant]
            if kinds or layer.fan_in_fan_out:
                raise UserError(
                    "the LM head has adapters of another kind than plain LoRA (DoRA, say), which are not computed over "
                    "token trees; leave the head out of --lora_target_modules"
                )
            layers += [part[name] for part in (layer.lora_A, layer.lora_B) for name in part]
    if isinstance(head, nn.Embedding):  # the model multiplies by its weight, too
        layers = []
    for layer in layers:
        if type(layer).__module__.partition(".")[0] == "peft" and layer is head:
            raise UserError(
                f"the LM head is wrapped in a {type(layer).__name__} of PEFT, which is not computed over token trees"
            )
        if parametrize.is_parametrized(layer):
            raise UserError("the LM head is parametrized, which is not computed over token trees; remove that first")
        if any(not _is_deepspeed(hook) for hook in _hooks(layer)):
            raise UserError("the LM head has hooks, which are not called over token trees; remove them first")
    return head, lora


def _hooks(layer: nn.Module) -> list:
    kinds = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return [hook for hooks in kinds for hook in hooks.values()]


def _is_deepspeed(hook) -> bool:
    """ZeRO-3 gathers weights by hooks; those that are read here it gathers as well, as they are looked up."""
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == "deepspeed"


def tree_cross_entropy(model: nn.Module, batch) -> torch.Tensor:
    """-log p of every prediction of the batch, summed: []. Its gradients are made in the forward pass.

    Where records give weights (token_values["weight"]) each summand is multiplied by its own; no weight is 1.
    """
    weights = batch.token_values.get("weight")
    if weights is not None:
        return -(weights.nan_to_num(nan=1.0) * tree_logprobs(model, batch).logprobs).sum()
    hidden = tree_hidden_states(model, batch)
    head = _head(model, hidden[batch.source])
    return linear_cross_entropy(head.hidden, head.weight, batch.target, head.bias, reduction="sum", **head.transform)


def tree_logprobs(model: nn.Module, batch, *, temperature: float = 1.0, with_entropy: bool = False) -> LinearLogprob:
    """Log-probability (and entropy) at every prediction of the batch, [N]; only those positions reach the LM head."""
    hidden = tree_hidden_states(model, batch)
    return head_logprobs(model, hidden[batch.source], batch.target, temperature=temperature, with_entropy=with_entropy)


def tree_token_scores(model: nn.Module, batch) -> torch.Tensor:
    """float32 [T, outputs]: the head of a reward model or critic at every token of the row; most have one output."""
    return unwrapped(model).score(tree_hidden_states(model, batch)).float()
