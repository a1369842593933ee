"""Pangu against what the published code computed (../shared/golden/gptpangu), and against itself."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from keju.models.pangu import PanguConfig, PanguForCausalLM, PanguForSequenceClassification, PanguModel

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]
# left_int64 and left_float32 are absent: there the original does not mask its pads (see the module's docstring).
FORWARD_CASES = [
    *("basic", "long", "pos", "token_type", "row0", "row1", "row2"),
    *("left_bool", "left_int32", "left_bool_pos", "right_bool", "right_int32", "right_int64", "right_float32"),
]


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "gptpangu"


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def models(folder):
    from keju.models import attention  # noqa: F401  registers "keju"

    return {name: PanguForCausalLM.from_pretrained(folder, attn_implementation=name) for name in IMPLEMENTATIONS}


@pytest.fixture
def model(folder):
    return PanguForCausalLM.from_pretrained(folder)


def tiny_config(**overrides) -> PanguConfig:
    sizes = dict(vocab_size=50, hidden_size=16, num_layers=3, num_heads=2, max_position_embeddings=32)
    return PanguConfig(**{**sizes, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **overrides})


def inputs_of(golden: dict, case: str) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "labels")
    return {name: golden[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden}


def assert_logits(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """At real positions: rows of pads see different keys in the original, whose causal mask is only -1e4."""
    assert ours.shape == theirs.shape
    keep = torch.ones(ours.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(ours[keep], theirs[keep], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", FORWARD_CASES)
@torch.no_grad()
def test_logits_equal_the_original(models, golden, case, implementation):
    inputs = inputs_of(golden, case)
    logits = models[implementation](**inputs).logits
    assert not logits.isnan().any()
    assert_logits(logits, golden[f"{case}.logits"], inputs.get("attention_mask"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.uint8])
@torch.no_grad()
def test_a_mask_of_any_dtype_masks_pads(models, golden, dtype):
    mask = golden["left_int32.attention_mask"].to(dtype)
    logits = models["sdpa"](golden["left_int32.input_ids"], attention_mask=mask).logits
    assert_logits(logits, golden["left_int32.logits"], mask)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_hidden_states_equal_the_original(models, golden, implementation):
    output = models[implementation](golden["basic.input_ids"], output_hidden_states=True)
    # The original lists what enters each block; for the last one that is the output of ln_f.
    assert len(output.hidden_states) == 4
    for index in (0, 1):
        torch.testing.assert_close(output.hidden_states[index], golden[f"basic.hidden_{index}"], atol=1e-4, rtol=1e-4)
    normed = models[implementation].transformer.ln_f(output.hidden_states[2])
    torch.testing.assert_close(normed, golden["basic.hidden_2"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.hidden_states[3], golden["basic.hidden"], atol=1e-4, rtol=1e-4)


def test_attention_weights_are_returned_by_eager_attention(models, golden):
    attentions = models["eager"](golden["basic.input_ids"], output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(2, 4, 12, 12)] * 3
    torch.testing.assert_close(attentions[2].sum(-1), torch.ones(2, 4, 12))


def test_losses_equal_the_original(model, golden):
    inputs = inputs_of(golden, "loss")
    expected = golden["loss.loss"]
    torch.testing.assert_close(model(**inputs).loss, expected, atol=1e-5, rtol=0)
    # -100 crashed the original; here it means what a pad means.
    labels = inputs["labels"].masked_fill(inputs["labels"] == 6, -100)
    torch.testing.assert_close(model(**{**inputs, "labels": labels}).loss, expected, atol=1e-5, rtol=0)
    squeezed = {name: tensor.squeeze(1) for name, tensor in inputs_of(golden, "train_3d").items()}
    output = model(**squeezed)
    torch.testing.assert_close(output.loss, golden["train_3d.loss"], atol=1e-5, rtol=0)
    assert_logits(output.logits, golden["train_3d.logits"].squeeze(1), squeezed["attention_mask"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_original(model, golden, folder, checkpointing):
    expected = json.loads((folder / "grads.json").read_text())
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # checkpoints are taken in training mode alone
        model.config.attn_pdrop = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    model(**inputs_of(golden, "loss"), use_cache=False).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(expected["grads"]) - {"lm_head.weight"}
    for name, gradient in gradients.items():
        if name.endswith("k_proj.bias"):  # shifts every score of a row alike: zero up to rounding
            assert gradient.abs().max() < 1e-5
            continue
        theirs = expected["grads"][name]
        assert gradient.norm().item() == pytest.approx(theirs["norm"], rel=1e-4), name
        assert gradient.abs().max().item() == pytest.approx(theirs["absmax"], rel=1e-4), name
        # A sum of parts with both signs cancels: its error follows the size of the parts.
        assert gradient.sum().item() == pytest.approx(theirs["sum"], abs=1e-5 * gradient.abs().sum().item()), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_cache_equals_the_original(models, golden, implementation):
    ids = golden["cache.input_ids"]
    output = models[implementation](ids[:, :6], use_cache=True)
    logits = [output.logits]
    for step in range(6, 10):
        output = models[implementation](ids[:, step : step + 1], past_key_values=output.past_key_values)
        logits.append(output.logits)
    assert_logits(torch.cat(logits, 1), golden["cache.logits"])
    last = output.past_key_values.layers[-1]
    torch.testing.assert_close(last.keys, golden["cache.last_layer_key"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last.values, golden["cache.last_layer_value"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["gen0", "gen1", "gen_left_int32"])
def test_greedy_generation_equals_the_original(models, golden, case, implementation):
    prompt = golden[f"{case}.prompt_ids"]
    # What a tokenizer makes; the original only masks pads when the mask is int32.
    mask = golden.get(f"{case}.attention_mask", torch.ones_like(prompt)).long()
    model = models[implementation]
    lengths = []
    hook = model.transformer.wte.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    output = model.generate(prompt, attention_mask=mask, max_new_tokens=16, do_sample=False)
    hook.remove()
    assert output.tolist() == golden[f"{case}.output_ids"].tolist()
    assert lengths == [prompt.shape[1]] + [1] * 15, "the cache holds all but the newest token"


@pytest.mark.parametrize("file", ["config.json", "config.upstream_style.json"])
@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_published_folders_load_without_their_code(folder, golden, tmp_path, file, trust_remote_code, monkeypatch):
    shutil.copy(folder / file, tmp_path / "config.json")
    shutil.copy(folder / "model.safetensors", tmp_path)
    for name in ("configuration_gptpangu", "modeling_gptpangu"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked whether to run code"))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
    assert type(config) is PanguConfig
    assert config.model_type == "gpt_pangu"
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (3, 4, 64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
    assert type(model) is PanguForCausalLM
    assert_logits(model(golden["basic.input_ids"]).logits, golden["basic.logits"])
    # The published files name no end token.
    assert model.generation_config.eos_token_id == 9
    assert type(AutoModel.from_pretrained(tmp_path)) is PanguModel


def test_old_checkpoints_load_without_a_word_and_save_under_the_original_names(folder, golden, tmp_path, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert model.lm_head.weight is model.transformer.wte.weight

    model.save_pretrained(tmp_path)
    original = load_file(folder / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    buffers = {name for name in original if name.endswith((".attn.bias", ".masked_bias"))}
    # One copy of the tied weight is enough: both implementations tie the head when they load.
    assert set(saved) == set(original) - buffers - {"lm_head.weight"}
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in config
    assert (config["model_type"], config["num_layers"], config["num_heads"]) == ("gpt_pangu", 3, 4)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_logits(again(golden["basic.input_ids"]).logits, golden["basic.logits"])
    assert again.generation_config.eos_token_id == 9


def test_missing_weights_are_reported(folder, tmp_path):
    """Ignoring the buffers of old checkpoints must not hide anything else."""
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.0.attn.c_proj.bias"]
    weights["transformer.h.0.attn.stray"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"transformer.h.0.attn.c_proj.bias"}
    assert set(info["unexpected_keys"]) == {"transformer.h.0.attn.stray"}


def test_reward_model_starts_from_a_language_model(folder, golden, tmp_path):
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, output_loading_info=True)
    assert type(model) is PanguForSequenceClassification
    assert set(info["missing_keys"]) == {"score.weight"}
    assert not info["unexpected_keys"]
    assert model.score.weight.shape == (1, 64)
    assert model.score.bias is None
    ids, mask = golden["left_int32.input_ids"], golden["left_int32.attention_mask"]
    scores = model(ids, attention_mask=mask).logits
    hidden = model.transformer(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(scores, model.score(hidden[:, -1]))  # the pads are on the left
    right = golden["right_int32.input_ids"]
    last = golden["right_int32.attention_mask"].sum(1) - 1
    hidden = model.transformer(right).last_hidden_state[torch.arange(3), last]
    torch.testing.assert_close(model(right).logits, model.score(hidden))

    model.save_pretrained(tmp_path)
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert again.config.num_labels == 1
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(again(ids, attention_mask=mask).logits, scores)


def test_logits_to_keep(models, golden):
    ids = golden["basic.input_ids"]
    everything = models["sdpa"](ids).logits
    torch.testing.assert_close(models["sdpa"](ids, logits_to_keep=2).logits, everything[:, -2:])
    kept = torch.tensor([0, 5])
    torch.testing.assert_close(models["sdpa"](ids, logits_to_keep=kept).logits, everything[:, kept])


def test_embeddings_may_be_given_instead_of_ids(models, golden):
    ids = golden["basic.input_ids"]
    embeddings = models["sdpa"].get_input_embeddings()(ids)
    torch.testing.assert_close(models["sdpa"](inputs_embeds=embeddings).logits, models["sdpa"](ids).logits)


def test_an_end_token_that_is_also_the_pad_is_trained():
    model = PanguForCausalLM(tiny_config(pad_token_id=9, eos_token_id=9))
    ids = torch.tensor([[3, 4, 9]])
    labels = torch.tensor([[-100, -100, 9]])
    assert model(ids, labels=labels).loss > 0


def test_dropout_acts_where_the_config_says():
    torch.manual_seed(0)
    ids = torch.arange(10)[None]
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        model = PanguForCausalLM(tiny_config(**{name: 0.5})).train()
        assert not torch.equal(model(ids).logits, model(ids).logits), name
        model.eval()
        assert torch.equal(model(ids).logits, model(ids).logits), name


def test_initial_weights():
    model = PanguForCausalLM(tiny_config(hidden_size=64, num_layers=8, initializer_range=0.5))
    attn = model.transformer.h[3].attn
    assert attn.q_proj.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert attn.c_proj.weight.std().item() == pytest.approx(0.5 / 4, rel=0.1)
    assert model.transformer.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.5 / 4, rel=0.1)
    assert model.transformer.wqe.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert attn.c_proj.bias.abs().max() == 0


def test_errors_are_one_line():
    model = PanguForCausalLM(tiny_config())
    with pytest.raises(ValueError, match=r"^input_ids must be \[batch, time\], not \[1, 1, 4\].*$"):
        model(torch.zeros(1, 1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="^33 tokens are more than max_position_embeddings=32$"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="^hidden_size 30 is not a multiple of num_heads 4$"):
        tiny_config(hidden_size=30, num_heads=4)


def test_lora(tmp_path):
    peft = pytest.importorskip("peft")
    base = PanguForCausalLM(tiny_config()).eval()
    ids = torch.arange(10)[None]
    before = base(ids).logits
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(base, lora)
    adapted = model(ids, labels=ids)
    adapted.loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(trained) == 3 * 2 * 2
    assert all("lora_" in name for name in trained)
    assert not torch.allclose(adapted.logits, before)
    merged = model.eval().merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, adapted.logits, atol=1e-5, rtol=1e-4)
