"""Weights that rest, by name and by layer."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BUILDERS, build_llama, build_scalar_model

from keju.models.architecture import layers_of
from keju.training.freezing import Freezing


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_globs():
    model = build_llama()
    every = trained(model)
    Freezing(("*.mlp.*", "*norm*"), ("*.1.mlp.up_proj*",)).apply(model)
    resting = {name for name in every if (".mlp." in name or "norm" in name) and "1.mlp.up_proj" not in name}
    assert trained(model) == every - resting and resting


@pytest.mark.parametrize("family", ["llama", "pangu", "glm"])
def test_layers(family):
    model = BUILDERS[family]()
    layers = list(layers_of(model))
    Freezing(first_layers=1).apply(model)
    assert not any(parameter.requires_grad for parameter in layers[0].parameters())
    assert all(parameter.requires_grad for layer in layers[1:] for parameter in layer.parameters())
    model = build_scalar_model(BUILDERS[family]())
    Freezing(last_layers=1).apply(model)
    layers = list(layers_of(model))
    assert not any(parameter.requires_grad for parameter in layers[-1].parameters())
    assert all(parameter.requires_grad for parameter in [*layers[0].parameters(), *model.score.parameters()])


def test_a_tied_head_rests_under_either_name():
    for pattern in ("lm_head*", "model.embed_tokens*"):
        model = build_llama(tie_word_embeddings=True)
        Freezing((pattern,)).apply(model)
        assert not model.lm_head.weight.requires_grad and not model.get_input_embeddings().weight.requires_grad


def test_how_much_is_trained_is_said(capsys):
    model = build_llama()
    Freezing(("*",), ("model.norm.weight",)).apply(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert capsys.readouterr().out == f"Trained of the model: 32 of {total:,} weights ({32 / total:.1%}).\n"


@pytest.mark.parametrize(
    ("freezing", "said"),
    [
        (
            Freezing(("*attn_query*",)),
            "--freeze \\*attn_query\\*: no weight has such a name; they are called model.",
        ),
        (Freezing(("*",), ("nothing",)), "--unfreeze nothing: no weight has such a name"),
        (Freezing(("*",)), "--freeze: nothing is left to train"),
        (Freezing(first_layers=3), "--freeze_first_layers: LlamaForCausalLM has 2 layers"),
        (Freezing(last_layers=9), "--freeze_last_layers: LlamaForCausalLM has 2 layers"),
    ],
)
def test_what_means_nothing_is_refused(freezing, said):
    with pytest.raises(ValueError, match=said):
        freezing.apply(build_llama())


def test_gradients_stop_where_all_before_rests():
    """With recomputed activations, too, which need an input that has a gradient."""
    model = build_llama()
    model.activation_checkpointing_enable()
    Freezing(("*embed*",), first_layers=1).apply(model)
    model.train()
    model(input_ids=torch.arange(7, 15)[None], labels=torch.arange(7, 15)[None]).loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained(model)
