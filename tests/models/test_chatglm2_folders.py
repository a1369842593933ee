"""ChatGLM2 and ChatGLM3: published folders, heads, configs and adapters; the arithmetic is in test_chatglm2.py."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from keju.models.chatglm2 import (
    ChatGLM2Config,
    ChatGLM2ForConditionalGeneration,
    ChatGLM2ForSequenceClassification,
    ChatGLM2Model,
)

HEAD = "transformer.output_layer.weight"
LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


@pytest.fixture(scope="module", params=["chatglm2", "chatglm3"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(shared, family):
    return shared / "golden" / family


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture
def model(folder):
    return ChatGLM2ForConditionalGeneration.from_pretrained(folder)


def tiny_config(**overrides) -> ChatGLM2Config:
    sizes = dict(
        padded_vocab_size=50,
        seq_length=32,
        hidden_size=16,
        ffn_hidden_size=20,
        kv_channels=8,
        num_layers=2,
        num_attention_heads=4,
        multi_query_group_num=2,
        initializer_range=0.2,
    )
    return ChatGLM2Config(**{**sizes, **overrides})


def assert_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_negative_pad_counts_as_none(model, family):
    pad = {"chatglm2": 2, "chatglm3": None}[family]
    assert model.config.pad_token_id == pad
    assert model.generation_config.pad_token_id == pad
    assert model.generation_config.eos_token_id == 2


def test_the_folders_own_generation_settings_come_first(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "pad_token_id": 7}))
    generation = ChatGLM2ForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == ([2, 5], 7)


@pytest.mark.parametrize("lost", ["transformer.encoder.layers.0.mlp.dense_4h_to_h.weight", HEAD])
def test_missing_weights_are_reported(folder, tmp_path, lost):
    """Ignoring the buffers of published checkpoints must not hide anything else."""
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    weights["transformer.encoder.layers.0.stray"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    _, info = ChatGLM2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {lost}
    assert set(info["unexpected_keys"]) == {"transformer.encoder.layers.0.stray"}


@torch.no_grad()
def test_the_bare_backbone_has_no_head(folder, golden):
    model, info = ChatGLM2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any("output_layer" in name for name, _ in model.named_parameters())
    hidden = model(golden["basic.input_ids"]).last_hidden_state
    torch.testing.assert_close(hidden, golden["basic.hidden"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_reward_model_starts_from_a_language_model(folder, golden, tmp_path):
    load = ChatGLM2ForSequenceClassification.from_pretrained
    # 0 pads the golden rows; ChatGLM3's own pad is none at all.
    model, info = load(folder, num_labels=1, pad_token_id=0, output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    assert not info["unexpected_keys"]
    assert model.score.weight.shape == (1, 64)
    assert model.score.bias is None
    ids, mask = golden["left.input_ids"].clone(), golden["left.attention_mask"].bool()
    ids[~mask] = 0
    scores = model(ids, attention_mask=mask).logits
    hidden = model.transformer(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(scores, model.score(hidden[:, -1]))  # the pads are on the left
    ids, mask = golden["right.input_ids"].clone(), golden["right.attention_mask"].bool()
    ids[~mask] = 0
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, scores, atol=1e-4, rtol=1e-4)

    model.save_pretrained(tmp_path)
    again, info = load(tmp_path, output_loading_info=True)
    assert again.config.num_labels == 1
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(again(ids, attention_mask=mask).logits, scores, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_published_classifier_is_this_head_plus_a_bias(shared):
    folder = shared / "golden" / "chatglm3"
    golden = load_file(folder / "golden.safetensors")
    model = ChatGLM2ForSequenceClassification.from_pretrained(folder, num_labels=3, pad_token_id=511)
    model.score.weight.copy_(golden["seqcls.classifier_weight"])
    ids = golden["seqcls.input_ids"]
    assert not (ids == 511).any()
    logits = model(ids).logits + golden["seqcls.classifier_bias"]
    torch.testing.assert_close(logits, golden["seqcls.logits"], atol=1e-4, rtol=1e-4)


def test_dropout_acts_where_the_config_says():
    torch.manual_seed(0)
    ids = torch.arange(10)[None]
    model = ChatGLM2ForConditionalGeneration(tiny_config(attention_dropout=0.5)).train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    # Dropping all that the blocks add to the embeddings leaves the embeddings.
    model = ChatGLM2ForConditionalGeneration(tiny_config(hidden_dropout=1.0)).train()
    embedded = model.transformer.encoder["final_layernorm"](model.get_input_embeddings()(ids))
    torch.testing.assert_close(model(ids).logits, model.get_output_embeddings()(embedded))
    assert not torch.allclose(model.eval()(ids).logits, model.get_output_embeddings()(embedded))


@pytest.mark.parametrize(
    ("switches", "biases"),
    [
        ({"add_qkv_bias": False}, set()),
        ({"add_qkv_bias": True}, {"query_key_value"}),
        ({"add_bias_linear": True, "add_qkv_bias": False}, set(LINEAR)),
    ],
)
def test_biases_are_where_the_config_says(switches, biases):
    model = ChatGLM2ForConditionalGeneration(tiny_config(**switches))
    names = {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert names == biases


def test_embeddings_are_tied_where_the_config_says(tmp_path):
    model = ChatGLM2ForConditionalGeneration(tiny_config(tie_word_embeddings=True))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again, info = ChatGLM2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    model = ChatGLM2ForConditionalGeneration(tiny_config())
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def test_the_vocabulary_can_grow():
    model = ChatGLM2ForConditionalGeneration(tiny_config())
    before = model(torch.arange(10)[None]).logits
    model.resize_token_embeddings(60, mean_resizing=False)
    assert model.config.padded_vocab_size == 60
    logits = model(torch.arange(10)[None]).logits
    assert logits.shape == (1, 10, 60)
    torch.testing.assert_close(logits[..., :50], before)
    assert model(torch.tensor([[59]])).logits.isfinite().all()


def test_what_the_config_describes():
    assert ChatGLM2Config().num_hidden_layers == 28
    assert ChatGLM2Config(vocab_size=70).padded_vocab_size == 70
    for name in ("multi_query_attention", "padded_vocab_size", "ffn_hidden_size"):
        assert ChatGLM2Config.describes({"model_type": "chatglm", name: 1})
    v1 = {"model_type": "chatglm", "position_encoding_2d": True, "inner_hidden_size": 16384, "vocab_size": 130528}
    assert not ChatGLM2Config.describes(v1)


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("rmsnorm", False),
        ("post_layer_norm", False),
        ("multi_query_attention", False),
        ("apply_residual_connection_post_layernorm", True),
        ("fp32_residual_connection", True),
        ("pre_seq_len", 128),
        ("quantization_bit", 4),
        ("rope_ratio", 50),
    ],
)
def test_switches_without_a_meaning_here_are_refused(switch, value):
    with pytest.raises(ValueError, match=f"^{switch}={value} is not supported in ChatGLM2 and 3, only .*$"):
        tiny_config(**{switch: value})


def test_errors_are_one_line():
    model = ChatGLM2ForConditionalGeneration(tiny_config())
    with pytest.raises(ValueError, match=r"^input_ids must be \[batch, time\], not \[1, 1, 4\]$"):
        model(torch.zeros(1, 1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="^give either input_ids or inputs_embeds$"):
        model()
    with pytest.raises(ValueError, match="^num_attention_heads 4 is not a multiple of the 3 groups$"):
        tiny_config(multi_query_group_num=3)
    with pytest.raises(ValueError, match="^kv_channels 6 is not a multiple of 4: .*$"):
        tiny_config(kv_channels=6)


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [("all-linear", LINEAR), (None, ["query_key_value"])],
)
def test_lora(targets, adapted):
    """The stages adapt "all-linear", peft by default query_key_value; never the output layer."""
    peft = pytest.importorskip("peft")
    base = ChatGLM2ForConditionalGeneration(tiny_config()).eval()
    ids = torch.arange(10)[None]
    before = base(ids).logits
    lora = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(base, lora)
    output = model(ids, labels=ids)
    output.loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(trained) == 2 * 2 * len(adapted)
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == set(adapted)
    assert not torch.allclose(output.logits, before)
    merged = model.eval().merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, output.logits, atol=1e-5, rtol=1e-4)
