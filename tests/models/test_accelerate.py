"""Models with our layers in them against the same models without: logits, gradients, generation, adapters."""

from __future__ import annotations

import copy
import importlib
import pkgutil

import pytest
import torch
from exactness import assert_as_exact
from peft import LoraConfig, get_peft_model
from tiny_models import BUILDERS, IDS, LIVELY, LLAMA
from transformers import AutoConfig, AutoModelForCausalLM

from keju.models import accelerated, attention, layers
from keju.models.accelerate import accelerate, with_kernels
from keju.models.backbone import tree_cross_entropy, tree_logprobs, unwrapped
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

QKV = {"num_key_value_heads": 2, "head_dim": 16}
CURRENT = {
    "llama": {**LLAMA, **QKV},
    "qwen2": {**LLAMA, **QKV, "model_type": "qwen2"},
    "qwen3": {**LLAMA, **QKV, "model_type": "qwen3"},
    "glm": {**LLAMA, **QKV, "model_type": "glm", "partial_rotary_factor": 0.5, "attention_bias": True},
    "glm4": {**LLAMA, **QKV, "model_type": "glm4", "partial_rotary_factor": 0.5},
}


def current_model(name, dtype=torch.float32, **overrides):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**LIVELY, **IDS, **CURRENT[name], "vocab_size": 97, **overrides})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME).to(dtype).eval()


def outputs_and_gradients(model, ids, **inputs):
    logits = model(ids, use_cache=False, **inputs).logits
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return logits, *torch.autograd.grad(logits.square().mean(), trained)


def assert_same(ours, plain, ids, **inputs):
    """Outputs and gradients of two models in float32 are equally near to those of the second in float64."""
    results = []
    for model in (ours, plain, copy.deepcopy(plain).double()):
        torch.manual_seed(3)  # of dropout
        results.append(outputs_and_gradients(model, ids, **inputs))
    assert_as_exact(*results)


@pytest.fixture(params=["triton", "reference"])
def choice(request, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", request.param)
    return request.param


@pytest.fixture
def ids():
    return torch.randint(7, 97, (2, 13), generator=torch.Generator().manual_seed(0))


def test_every_module_is_tested_here():
    assert {module.name for module in pkgutil.iter_modules(accelerated.__path__)} == set(CURRENT)


@pytest.mark.parametrize("name", CURRENT)
def test_outputs_and_gradients(name, choice, ids):
    plain = current_model(name)
    ours = accelerate(copy.deepcopy(plain))
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert_same(ours, plain, ids)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    assert_same(ours, plain, ids, attention_mask=mask)


@pytest.mark.parametrize("name", CURRENT)
def test_every_layer_is_exchanged(name):
    """Whatever transformers calls norm, MLP, attention or layer is ours; a class of another name would be left out."""
    model = accelerate(current_model(name))
    family = importlib.import_module(f"keju.models.accelerated.{name}")
    ours = {value for value in vars(family).values() if isinstance(value, type)}
    kinds = ("RMSNorm", "MLP", "Attention", "DecoderLayer")
    found = {type(module) for module in model.modules() if type(module).__name__.endswith(kinds)}
    assert found == ours and len(ours) == len(kinds)


@pytest.mark.parametrize("name", CURRENT)
def test_generation_and_checkpointing(name, ids, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "reference")
    plain = current_model(name)
    ours = accelerate(copy.deepcopy(plain))
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(ours.generate(ids, **options), plain.generate(ids, **options))
    ours.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(ours, plain, ids)


def test_another_activation_stays_as_it_is(ids, choice):
    plain = current_model("llama", hidden_act="relu")
    ours = accelerate(copy.deepcopy(plain))
    assert_same(ours, plain, ids)


def test_half_precision(ids, choice):
    plain = current_model("qwen3", dtype=torch.bfloat16)
    ours = accelerate(copy.deepcopy(plain))
    found, expected = ours(ids).logits, plain(ids).logits
    assert found.dtype == torch.bfloat16
    wide = current_model("qwen3", dtype=torch.bfloat16).float()(ids).logits
    # As far from the exact result as the original; Triton's interpreter cuts bfloat16 off where a GPU rounds it.
    assert (found - wide).abs().mean() < 2 * (expected - wide).abs().mean()


class TestAdapters:
    def adapted(self, name="llama", **options):
        model = get_peft_model(
            current_model(name), LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": "all-linear", **options})
        )
        generator = torch.Generator().manual_seed(1)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        return model

    @pytest.mark.parametrize("name", CURRENT)
    def test_lora(self, name, ids, choice):
        plain = self.adapted(name)
        ours = accelerate(copy.deepcopy(plain))
        assert list(ours.state_dict()) == list(plain.state_dict())
        assert_same(ours, plain, ids)

    def test_projections_of_one_input_go_together(self, ids, monkeypatch):
        calls = []
        original = layers.lora_linear
        monkeypatch.setattr(layers, "lora_linear", lambda x, *a: calls.append(len(a)) or original(x, *a))
        accelerate(self.adapted())(ids)
        assert calls == [3, 2] * 2

    @pytest.mark.parametrize(
        "options", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}, {"use_rslora": True}], ids=str
    )
    def test_other_kinds_run_as_they_are(self, options, ids, choice):
        """DoRA, biases and dropout are PEFT's to compute; rsLoRA is another scale and nothing else."""
        plain = self.adapted(**options).train()
        ours = accelerate(copy.deepcopy(plain))
        assert_same(ours, plain, ids)

    def test_merged_disabled_and_several(self, ids):
        plain = self.adapted()
        ours = accelerate(copy.deepcopy(plain))
        with plain.disable_adapter(), ours.disable_adapter():
            torch.testing.assert_close(ours(ids).logits, plain(ids).logits)
        for model in (plain, ours):
            model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        ours.load_state_dict(plain.state_dict())
        for model in (plain, ours):
            model.base_model.set_adapter(["default", "second"])
        torch.testing.assert_close(ours(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
        merged = unwrapped(ours.merge_and_unload())
        torch.testing.assert_close(merged(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-4)


def test_nf4_layers_of_peft(ids, choice):
    """A 4-bit layer of bitsandbytes under PEFT: as PEFT computes it over the matrix that it stands for."""
    bnb = pytest.importorskip("bitsandbytes")
    from peft.tuners import lora

    base = bnb.nn.Linear4bit(64, 32, bias=True, quant_type="nf4", compress_statistics=True, compute_dtype=torch.float32)
    base.load_state_dict(torch.nn.Linear(64, 32).state_dict())
    base = base.to("cpu").requires_grad_(False)
    assert base.weight.quant_state is not None
    layer = lora.Linear4bit(base, "default", r=4, lora_alpha=8, config=LoraConfig(r=4, lora_alpha=8))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    ours = layers.as_lora(layer, torch.zeros(1, 64))
    assert ours is not None and ours.weight.shape == (32, 64)
    x = torch.randn(5, 64, requires_grad=True)
    (found,) = layers.project(x, layer)
    expected = bnb.functional.dequantize_4bit(base.weight, base.weight.quant_state)
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    torch.testing.assert_close(found, x @ (expected + delta).t() + base.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", ["triton", "reference", ""], ids=str)
def test_on_by_default_on_cuda_alone(choice, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", choice)
    expected = choice == "triton" or (not choice and torch.cuda.is_available())
    exchanged = type(with_kernels(current_model("llama")).model.norm).__module__ == "keju.models.accelerated.llama"
    assert exchanged == expected


def trees(model):
    from tiny_models import opening

    start = opening(model)
    prompt = Segment(
        [10, 11, 12, 13, 14, *start], branches=[Segment([20, 21, 22], trained=True), Segment([30, 31], trained=True)]
    )
    return PackedBatch.from_trees([prompt, Segment([40, 41, *start, 42, 43], trained=True)])


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_our_families_through_triton(family, monkeypatch):
    """Trees with a shared prompt: log-probabilities and all gradients, interpreted kernels against plain torch."""
    results = []
    for choice, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        monkeypatch.setenv("KEJU_KERNELS", choice)
        model = accelerate(BUILDERS[family]().to(dtype))
        logprobs = tree_logprobs(model, trees(model)).logprobs
        used = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(logprobs.square().sum(), used, allow_unused=True)
        results.append([logprobs, *(gradient for gradient in gradients if gradient is not None)])
    assert_as_exact(*results)


@pytest.mark.parametrize("family", ["llama", "pangu", "chatglm2"])
def test_thirty_steps_give_the_same_losses(family, monkeypatch):
    """A tiny model learns the same thing with kernels (interpreted where there is no GPU) and without."""
    losses = {}
    for choice in ("reference", "triton"):
        monkeypatch.setenv("KEJU_KERNELS", choice)
        model = accelerate(BUILDERS[family](vocab_size=41, hidden_size=16)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        batch, losses[choice] = training_batch(), []
        for _ in range(30):
            loss = tree_cross_entropy(model, batch) / len(batch.target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[choice].append(loss.item())
    assert losses["triton"][-1] < 0.5 * losses["triton"][0]
    torch.testing.assert_close(torch.tensor(losses["triton"]), torch.tensor(losses["reference"]), rtol=2e-3, atol=2e-4)


def training_batch():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(7, 40, (length,), generator=generator).tolist() for length in (9, 5)]
    return PackedBatch.from_trees([Segment(row, trained=True) for row in rows])
