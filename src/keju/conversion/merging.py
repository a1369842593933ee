"""Adapters merged into the model that they were trained on: a whole model that gives what the two gave together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from keju.conversion.output_folder import own_files
from keju.conversion.verification import largest_difference, sample_logits
from keju.errors import UserError, renamed_options
from keju.models.adapter_folder import SETTINGS, check_weights, fit_embeddings
from keju.models.backbone import backbone_of, num_embeddings, unwrapped
from keju.models.checkpoint_files import read_object
from keju.models.configurations import base_of
from keju.models.loading import DTYPES, load_causal_lm, load_scalar_model
from keju.models.quantization import nf4, trained_in_4bit
from keju.models.saved_weights import NotAsSaved, verify_saved
from keju.records.writing import whole_folder, write_json

FIGURES = "merge.json"


class Merged(NamedTuple):
    """what: "logits" or "scores"; by how much they differ, and how large they are."""

    what: str
    difference: float
    scale: float


def merge_adapters(
    source: str,
    output: Path,
    *,
    save_tokenizer: Callable[[Path], Any],
    base: str | None = None,
    dtype: str = "float32",
    known_as: Mapping[str, Any] | None = None,
) -> Merged:
    """Writes the whole model into the folder `output`, or nothing.

    It gives the logits (of a reward model or critic: the scores) that the adapters in `source` give on top of their
    base, before and after it has been written. Those that were trained over 4 bits are merged into what these mean.

    Args:
        save_tokenizer: writes the tokenizer into the folder that it is given.
        base: the folder of the base, where it is not the one that the adapters name.
        dtype: of the weights that are written.
        known_as: what merge.json says besides.
    Raises:
        UserError: adapters of a kind that cannot be merged; another result than that of the adapters.
    """
    from peft import PeftModel

    base = base_of(source, base)
    is_scalar = read_object(Path(source) / SETTINGS).get("task_type") == "SEQ_CLS"
    load = load_scalar_model if is_scalar else load_causal_lm
    with renamed_options(load_in_4bit="model_name_or_path"):  # these adapters ask for it, and no option
        quantization = nf4(torch.float32) if trained_in_4bit(source) else None

    def adapt(model: PreTrainedModel) -> nn.Module:
        fit_embeddings(model, source)
        adapted = PeftModel.from_pretrained(model, source).eval()
        check_weights(adapted, source)
        return adapted

    model = load(base, quantization=quantization)
    adapted = adapt(model)
    num_tokens = num_embeddings(adapted)
    before = token_outputs(adapted, num_tokens, is_scalar)
    if quantization is not None:
        # What was trained stands on what the 4 bits mean, not on the weights that they were made from.
        adapted = adapt(load(base, quantization=quantization).dequantize(torch.float32))
    _untie(adapted, where=source)
    merged = adapted.merge_and_unload(safe_merge=True)
    _describe_ties(merged)
    largest_difference(before, token_outputs(merged, num_tokens, is_scalar))
    with whole_folder(output, own=own_files) as folder:
        merged.to(DTYPES[dtype]).save_pretrained(folder)
        try:
            verify_saved(merged, folder)
        except NotAsSaved as error:
            raise UserError(str(error), option="output_dir") from error
        save_tokenizer(folder)
        again = load(str(folder), **({"require_head": True} if is_scalar else {}))
        after = token_outputs(again, num_tokens, is_scalar)
        # Half precision rounds weights that were merged exactly: the difference is told, and no reason to stop.
        exact = dtype == "float32"
        difference = largest_difference(before, after) if exact else float((before - after).abs().max())
        scale = float(before.abs().max())
        figures = {"adapters": source, "base": base, "largest_difference": difference, "scale": scale}
        write_json(folder / FIGURES, {**figures, **(known_as or {})})
    return Merged("scores" if is_scalar else "logits", difference, scale)


@torch.inference_mode()
def token_outputs(model: PreTrainedModel, num_tokens: int, is_scalar: bool) -> torch.Tensor:
    """Logits, or the scores of a scalar model, at every token of a few random rows."""
    if not is_scalar:
        return sample_logits(model, num_tokens)

    def scores(**inputs):
        hidden = backbone_of(model)(**inputs, use_cache=False)
        return unwrapped(model).score(hidden.last_hidden_state)

    return sample_logits(model, num_tokens, scores)


def _untie(adapted: nn.Module, *, where: str) -> None:
    """Adapters on an embedding that is the head as well, or the other way round, change one of the two: so they must be
    two before the adapters are merged. Raises UserError where they cannot be."""
    from peft.tuners.lora import LoraLayer

    model = unwrapped(adapted)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or not any(isinstance(layer, LoraLayer) for layer in (embedding, head)):
        return
    if embedding is head:
        raise UserError(
            f"{where}: its adapters change what {type(model).__name__} embeds, but not the head, which is the same "
            "layer; they cannot be merged",
            option="model_name_or_path",
        )
    inner, outer = (getattr(layer, "base_layer", layer) for layer in (embedding, head))
    if inner.weight is outer.weight:
        outer.weight = nn.Parameter(outer.weight.detach().clone(), requires_grad=outer.weight.requires_grad)


def _describe_ties(model: PreTrainedModel) -> None:
    """A config that calls two weights one, which they are no more, would make them one again in the next loading."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and not torch.equal(embedding.weight, head.weight):
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
