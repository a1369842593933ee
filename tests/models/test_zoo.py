"""What every family of the zoo can do, beyond the golden outputs that its own test has: one test for all."""

from __future__ import annotations

import builtins
import copy
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import BUILDERS, opening, row_inputs
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GlmConfig,
    GlmForCausalLM,
    TextIteratorStreamer,
)

from keju.models.backbone import tree_logprobs
from keju.models.configurations import named_sizes, size_config
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.training.tree_guard import verify_trees
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

# golden folder -> (its language model, other Auto classes that its published auto_map names)
PUBLISHED = {
    "gptpangu": ("PanguForCausalLM", {}),
    "glm": (
        "GLMForConditionalGeneration",
        {AutoModel: "GLMModel", AutoModelForSeq2SeqLM: "GLMForConditionalGeneration"},
    ),
    "chatglm": (
        "ChatGLMForConditionalGeneration",
        {AutoModel: "ChatGLMForConditionalGeneration", AutoModelForSeq2SeqLM: "ChatGLMForConditionalGeneration"},
    ),
    "chatglm2": (
        "ChatGLM2ForConditionalGeneration",
        {AutoModel: "ChatGLM2ForConditionalGeneration", AutoModelForSeq2SeqLM: "ChatGLM2ForConditionalGeneration"},
    ),
    "chatglm3": (
        "ChatGLM2ForConditionalGeneration",
        {AutoModel: "ChatGLM2ForConditionalGeneration", AutoModelForSeq2SeqLM: "ChatGLM2ForConditionalGeneration"},
    ),
    "baichuan-7B": ("BaichuanForCausalLM", {}),
    "baichuan-13B": ("BaichuanForCausalLM", {}),
    "qwen": ("QWenForCausalLM", {}),
    "llama": ("LlamaForCausalLM", {}),
}
# Published checkpoints hold tables that are computed here.
BUFFERS = (".attn.bias", ".masked_bias", ".inv_freq")
PROMPTS = [[1, 20, 21, 22, 23, 24], [1, 30, 31], [1, 40, 41, 42, 43, 44, 45, 46, 47]]


@pytest.fixture(params=PUBLISHED)
def folder(request, shared, tmp_path):
    """A published folder, with Python code beside it that must not run."""
    source = shared / "golden" / request.param
    target = tmp_path / "model"
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, target)
    auto_map = json.loads((target / "config.json").read_text()).get("auto_map", {})
    for reference in auto_map.values():
        for name in [reference] if isinstance(reference, str) else filter(None, reference):
            (target / f"{name.partition('.')[0]}.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
    return target


@pytest.mark.parametrize("file", ["config.json", "config.upstream_style.json"])
@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_published_folders_load_through_every_auto_class(
    folder, shared, file, trust_remote_code, monkeypatch, request, caplog
):
    family = request.node.callspec.params["folder"]
    shutil.copy(shared / "golden" / family / file, folder / "config.json")
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("asked whether to run code"))
    name, others = PUBLISHED[family]
    settings = {} if trust_remote_code is None else {"trust_remote_code": trust_remote_code}
    assert not getattr(AutoConfig.from_pretrained(folder, **settings), "auto_map", None)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    finally:
        logger.removeHandler(caplog.handler)
    assert type(model).__name__ == name
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    # transformers reads the pad of -100 in ChatGLM3's file before our config makes nothing of it
    assert said == [] or (family == "chatglm3" and all("pad_token_id" in message for message in said))
    for auto_class, expected in others.items():
        assert type(auto_class.from_pretrained(folder, **settings)).__name__ == expected


def test_saved_weights_are_the_published_ones(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    original = load_file(folder / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    assert set(saved) == {name for name in original if not name.endswith(BUFFERS)} - tied
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(again) is type(model)
    ids = torch.tensor([[7, 8, 9, 10]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_our_loading_reads_them_too(folder):
    model = load_causal_lm(str(folder))
    assert model.config._attn_implementation == "keju"
    reward = load_scalar_model(str(folder))
    assert reward.score.weight.shape == (1, model.config.hidden_size)
    backbone = getattr(reward, reward.base_model_prefix).state_dict()
    trained = getattr(model, model.base_model_prefix).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in backbone.items())


def test_reward_models_are_saved_and_loaded(folder, tmp_path):
    reward = load_scalar_model(str(folder))
    torch.nn.init.normal_(reward.score.weight)
    reward.save_pretrained(tmp_path / "reward")
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again.score.weight, reward.score.weight)


def prompts_of(model) -> list[list[int]]:
    return [prompt + opening(model) for prompt in PROMPTS]


def padded_prompts(model) -> dict:
    inputs = row_inputs(model, prompts_of(model), side="left")
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


SETTINGS = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 3}


def generate(model, inputs, **settings):
    with torch.no_grad():
        return model.generate(**inputs, **{**SETTINGS, **settings})[:, inputs["input_ids"].shape[1] :].tolist()


def test_left_padded_generation_equals_one_by_one(causal_lm):
    together = generate(causal_lm, padded_prompts(causal_lm), do_sample=False)
    for prompt, got in zip(prompts_of(causal_lm), together, strict=True):
        alone = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        assert generate(causal_lm, alone, do_sample=False) == [got]
        # and one whole forward pass for each token, without a cache
        ids = list(prompt)
        for token in got:
            with torch.no_grad():
                logits = causal_lm(**row_inputs(causal_lm, [ids]), use_cache=False).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)


def test_a_cache_of_fixed_size_changes_nothing(causal_lm):
    inputs = padded_prompts(causal_lm)
    expected = generate(causal_lm, inputs, do_sample=False)
    assert generate(causal_lm, inputs, do_sample=False, cache_implementation="static", disable_compile=True) == expected


def test_beams_samples_and_several_sequences(causal_lm):
    inputs = padded_prompts(causal_lm)
    beams = generate(causal_lm, inputs, num_beams=3, num_return_sequences=2, do_sample=False)
    assert len(beams) == 6
    for number, prompt in enumerate(prompts_of(causal_lm)):
        alone = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        own = generate(causal_lm, alone, num_beams=3, num_return_sequences=2, do_sample=False)
        assert own == beams[2 * number : 2 * number + 2]
    torch.manual_seed(0)
    samples = generate(causal_lm, inputs, num_return_sequences=3, do_sample=True)
    assert len(samples) == 9 and len({tuple(sample) for sample in samples}) > 3


def test_streaming(causal_lm):
    class Decoder:
        def decode(self, ids, **kwargs):
            return " ".join(map(str, ids))

    prompt = torch.tensor([prompts_of(causal_lm)[0]])
    streamer = TextIteratorStreamer(Decoder(), skip_prompt=True, timeout=30)
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    expected = generate(causal_lm, inputs, do_sample=False, streamer=streamer)[0]
    assert "".join(streamer).split() == [str(token) for token in expected]


def test_gradient_checkpointing_changes_no_gradient(causal_lm):
    tree = Segment(prompts_of(causal_lm)[0], branches=[Segment([50, 51, 2], True), Segment([52, 2], True)])
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(causal_lm).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        (-tree_logprobs(model, PackedBatch.from_trees([tree])).logprobs.sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-5)


def test_half_precision_runs(causal_lm):
    model = copy.deepcopy(causal_lm).to(torch.bfloat16)
    tree = Segment(prompts_of(model)[0], branches=[Segment([50, 51, 2], True)])
    logprobs = tree_logprobs(model, PackedBatch.from_trees([tree])).logprobs
    expected = tree_logprobs(causal_lm, PackedBatch.from_trees([tree])).logprobs
    torch.testing.assert_close(logprobs, expected, atol=0.5, rtol=0.1)
    assert len(generate(model, padded_prompts(model), do_sample=False)) == 3


def test_trees_are_verified(causal_lm):
    verify_trees(causal_lm, gradients=True)


# Of the projections in front of attention, as PEFT has it for the models of transformers.
ATTENTION = {
    "llama": {"q_proj", "v_proj"},
    "pangu": {"q_proj", "v_proj"},
    "glm": {"query_key_value"},
    "chatglm": {"query_key_value"},
    "chatglm2": {"query_key_value"},
    "baichuan-7B": {"W_pack"},
    "baichuan-13B": {"W_pack"},
    "baichuan2-7B": {"W_pack"},
    "qwen": {"c_attn"},
    "internlm": {"q_proj", "v_proj"},
    "xverse": {"q_proj", "v_proj"},
}


@pytest.mark.parametrize("family", BUILDERS)
def test_lora_attaches_without_being_told_where(family):
    from peft import LoraConfig, get_peft_model

    base = BUILDERS[family]()
    tree = Segment(prompts_of(base)[0], branches=[Segment([50, 51, 2], True)])
    before = tree_logprobs(base, PackedBatch.from_trees([tree])).logprobs.detach()
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted == ATTENTION[family]
    logprobs = tree_logprobs(model, PackedBatch.from_trees([tree])).logprobs
    assert not torch.allclose(logprobs, before)
    logprobs.sum().backward()
    learned = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert learned and all("lora_" in name for name in learned)


def test_a_larger_vocabulary(causal_lm):
    model = copy.deepcopy(causal_lm)
    tree = Segment(prompts_of(model)[0], branches=[Segment([50, 51, 2], True)])
    verify_trees(model)
    model.resize_token_embeddings(130)
    assert model.get_input_embeddings().num_embeddings == 130
    assert model.get_output_embeddings().weight.shape[0] == 130
    logits = model(**row_inputs(model, [[*tree.tokens, 120]])).logits
    assert logits.shape[-1] == 130
    verify_trees(model)


def test_glm_of_transformers_still_is_what_it_is(tmp_path):
    config = GlmConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    GlmForCausalLM(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "glm"
    assert type(AutoConfig.from_pretrained(tmp_path)) is GlmConfig
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is GlmForCausalLM
    assert type(AutoConfig.for_model("glm", num_hidden_layers=2)) is GlmConfig


# Parameters of the published models, in billions.
PARAMETERS = {
    "pangu-350M": 0.35, "pangu-2.6B": 2.6, "pangu-13B": 13.1, "glm-350M-chinese": 0.355, "glm-10B-chinese": 9.9,
    "chatglm-6B": 6.25, "chatglm-6B-v1.1": 6.2, "chatglm2-6B": 6.24, "chatglm3-6B": 6.24, "baichuan-7B": 7.0,
    "baichuan-13B": 13.26, "baichuan2-7B": 7.5, "baichuan2-13B": 13.9, "qwen-7B": 7.72, "llama-7B": 6.74,
    "llama-13B": 13.0, "llama2-7B": 6.74, "llama3-8B": 8.03,
}  # fmt: skip


def test_every_published_size_has_a_tiny_one_beside_it():
    tiny = {name for name in named_sizes() if name.endswith("-tiny")}
    assert set(named_sizes()) - tiny == set(PARAMETERS)
    kinds = {(type(size_config(name)), size_config(name).to_dict().get("z_loss_weight") is None) for name in tiny}
    for name in PARAMETERS:
        config = size_config(name)
        assert (type(config), config.to_dict().get("z_loss_weight") is None) in kinds, name


@pytest.mark.parametrize("name", PARAMETERS)
def test_named_sizes_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(size_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(PARAMETERS[name], rel=0.03)


@pytest.mark.parametrize("name", [name for name in named_sizes() if name.endswith("-tiny")])
def test_tiny_sizes_start_from_scratch(name):
    model = load_causal_lm(name)
    assert sum(parameter.numel() for parameter in model.get_decoder().parameters() if parameter.dim() > 0)
