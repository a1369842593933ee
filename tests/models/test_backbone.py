"""The LM head in passes over trees, which multiply by its weight: what the model's own forward pass computes, with all
kinds of adapters on it, and their gradients; or a refusal."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import BUILDERS, opening
from torch import nn
from torch.nn.utils import parametrizations

from keju.models.backbone import check_head, tree_cross_entropy, tree_logprobs, unwrapped
from keju.training.tree_guard import verify_trees
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

CASES = {
    "head alone": ("llama", {"target_modules": ["lm_head"]}),
    "head among others": ("llama", {"target_modules": ["q_proj", "lm_head"], "use_rslora": True}),
    "computed head": (
        "baichuan2-7B",
        {"target_modules": ["lm_head"]},
    ),  # a head whose weight is computed from another one
    "tied head": ("pangu", {"target_modules": ["lm_head", "q_proj"]}),
    "tied embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}, {"tie_word_embeddings": True}),
    "embedding that is the head": ("glm", {"target_modules": ["word_embeddings", "query_key_value"]}),
    "whole head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "whole computed head": ("baichuan2-7B", {"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}),
    "whole embedding, tied": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"tie_word_embeddings": True},
    ),
    "both whole": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
}


def adapted(case: str):
    family, settings, *overrides = CASES[case]
    model = BUILDERS[family](**(overrides[0] if overrides else {}))
    if case == "both whole":
        model.resize_token_embeddings(104)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **settings)).eval()
    shake(model)
    return model


@torch.no_grad()
def shake(model) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn_like(parameter))


def row(model) -> PackedBatch:
    context = Segment([4, 9, 12, 11, *opening(unwrapped(model))], trained=not opening(unwrapped(model)))
    context.branches = [Segment([20, 21, 35, 2, 7], True)]
    return PackedBatch.from_trees([context])


def own_logprobs(model, batch: PackedBatch) -> torch.Tensor:
    from keju.training.tree_guard import _own_inputs

    logits = model(**_own_inputs(model, batch), use_cache=False).logits[0, batch.source]
    return logits.log_softmax(-1).gather(-1, batch.target[:, None]).squeeze(-1)


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_as_its_own_forward(model) -> dict[str, torch.Tensor]:
    batch = row(model)
    own = own_logprobs(model, batch)
    expected = gradients(model, -own.sum())
    for of_trees in (lambda: -tree_logprobs(model, batch).logprobs.sum(), lambda: tree_cross_entropy(model, batch)):
        loss = of_trees()
        torch.testing.assert_close(loss, -own.sum(), atol=1e-4, rtol=1e-4)
        found = gradients(model, loss)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
    torch.testing.assert_close(tree_logprobs(model, batch, with_entropy=True).logprobs, own, atol=1e-4, rtol=1e-4)
    return expected


@pytest.mark.parametrize("case", CASES)
def test_heads_of_peft(case):
    model = adapted(case)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = assert_as_its_own_forward(model)
    assert found.keys() == trained
    if "head" in case and "embedding" not in case:
        assert any("lm_head" in name and gradient.any() for name, gradient in found.items())
    verify_trees(model, gradients=True)


def test_several_adapters_on_a_head_and_none():
    model = adapted("head alone")
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=5, target_modules=["lm_head", "q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    shake(model)
    found = assert_as_its_own_forward(model)
    assert {name.split(".")[-2] for name in found if "lm_head" in name} == {"default", "other"}
    with model.disable_adapter(), torch.no_grad():
        batch = row(model)
        torch.testing.assert_close(tree_logprobs(model, batch).logprobs, own_logprobs(model, batch))
    model.merge_adapter()
    with torch.no_grad():
        torch.testing.assert_close(tree_logprobs(model, batch).logprobs, own_logprobs(model, batch))


def test_dropout_before_the_adapters_of_a_head():
    model = BUILDERS["llama"]()
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], lora_dropout=0.5))
    shake(model)
    batch = row(model)
    model.train()
    several = [tree_logprobs(model, batch).logprobs for _ in range(2)]
    assert not torch.equal(*several)
    model.eval()
    torch.testing.assert_close(tree_logprobs(model, batch).logprobs, own_logprobs(model, batch))


def test_adapters_with_a_bias():
    model = BUILDERS["chatglm2"]()
    model.transformer.output_layer = nn.Linear(32, 97)  # B has a bias where the layer has one
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["output_layer"], lora_bias=True)
    model = get_peft_model(model, config).eval()
    shake(model)
    assert any(name.endswith("lora_B.default.bias") for name in assert_as_its_own_forward(model))


def hooked(head: nn.Module) -> None:
    head.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (hooked, "the LM head has hooks"),
        (lambda head: head.register_forward_pre_hook(lambda module, args: None), "the LM head has hooks"),
        (lambda head: head.register_full_backward_hook(lambda module, *gradients: None), "the LM head has hooks"),
        (parametrizations.weight_norm, "the LM head is parametrized"),
    ],
    ids=["forward", "before", "backward", "parametrized"],
)
@pytest.mark.parametrize("case", ["plain", "head alone", "whole head"])
def test_what_is_not_called_is_refused(case, change, said):
    model = BUILDERS["llama"]() if case == "plain" else adapted(case)
    head = unwrapped(model).lm_head
    inner = {"plain": head, "head alone": getattr(head, "base_layer", None)}.get(case)
    change(inner if inner is not None else head.modules_to_save["default"])
    with pytest.raises(ValueError, match=said):
        tree_logprobs(model, row(model))
    with pytest.raises(ValueError, match=f"^model_name_or_path: LlamaForCausalLM: {said}"):
        verify_trees(model)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["lm_head"], "use_dora": True}, "the LM head has adapters of another kind than plain LoRA"),
        (
            {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 4]}},
            "the LM head is wrapped in a TrainableTokensWrapper of PEFT",
        ),
    ],
    ids=["dora", "tokens"],
)
def test_adapters_of_other_kinds_are_refused(settings, said):
    model = get_peft_model(BUILDERS["llama"](), LoraConfig(task_type="CAUSAL_LM", **settings))
    with pytest.raises(ValueError, match=said):
        check_head(model)


def test_hooks_of_deepspeed_stay():
    model = BUILDERS["llama"]()

    def hook(module, args, output):
        return None

    hook.__module__ = "deepspeed.utils.nvtx"
    model.lm_head.register_forward_hook(hook)
    check_head(model)
