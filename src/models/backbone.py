"""Forward passes over packed trees, for any causal language model of transformers."""

from __future__ import annotations

import torch
from torch import nn

from keju.kernels.column_mask import ColumnMask
from keju.kernels.linear_cross_entropy import linear_cross_entropy
from keju.kernels.linear_logprob import LinearLogprob, linear_logprob
from keju.models.architecture import check_row, row_limit
from keju.models.prefix_lm import PrefixLM


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
        check_row(unwrapped(model).config, limited["longest_row"], flag=type(backbone).__name__)
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
    weight, bias, transform = _head(model)
    return linear_logprob(hidden, weight, target, bias, temperature=temperature, with_entropy=with_entropy, **transform)


def _head(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, float | None]]:
    """weight [vocab, H] and bias [vocab] of the LM head, and what is done to its logits."""
    model = unwrapped(model)
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    # What current transformers models do to their logits after the head: Gemma 2 caps, Cohere and Granite scale.
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    weight = head.effective_weight() if isinstance(head, DerivedHead) else head.weight
    return (
        weight,
        getattr(head, "bias", None),
        {
            "scale": scale,
            "softcap": getattr(config, "final_logit_softcapping", None),
        },
    )


def tree_cross_entropy(model: nn.Module, batch) -> torch.Tensor:
    """-log p of every prediction of the batch, summed: []. Its gradients are made in the forward pass.

    Where records give weights (token_values["weight"]) each summand is multiplied by its own; no weight is 1.
    """
    weights = batch.token_values.get("weight")
    if weights is not None:
        return -(weights.nan_to_num(nan=1.0) * tree_logprobs(model, batch).logprobs).sum()
    hidden = tree_hidden_states(model, batch)
    weight, bias, transform = _head(model)
    return linear_cross_entropy(hidden[batch.source], weight, batch.target, bias, reduction="sum", **transform)


def tree_logprobs(model: nn.Module, batch, *, temperature: float = 1.0, with_entropy: bool = False) -> LinearLogprob:
    """Log-probability (and entropy) at every prediction of the batch, [N]; only those positions reach the LM head."""
    hidden = tree_hidden_states(model, batch)
    return head_logprobs(model, hidden[batch.source], batch.target, temperature=temperature, with_entropy=with_entropy)


def tree_token_scores(model: nn.Module, batch) -> torch.Tensor:
    """float32 [T, outputs]: the head of a reward model or critic at every token of the row; most have one output."""
    return unwrapped(model).score(tree_hidden_states(model, batch)).float()
