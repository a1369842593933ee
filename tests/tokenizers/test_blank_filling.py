"""Inputs for GLM's models against those of the published tokenizer (../shared/golden/glm), on the real vocabulary."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from keju.models.glm import GLMConfig, GLMModel
from keju.tokenizers.glm import GLMChineseTokenizer

QUESTION, PREFIX, ANSWER = "今天天气怎么样？", "回答：", "今天天气很好，适合出门散步。"


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "golden" / "glm" / "helper_inputs_real_vocab.safetensors")


@pytest.fixture(scope="module")
def entries(shared) -> dict[str, dict]:
    entries = json.loads((shared / "golden" / "glm" / "helper_inputs_real_vocab.json").read_text(encoding="utf-8"))
    return {entry["name"]: entry for entry in entries}


@pytest.fixture(scope="module")
def tokenizer(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm")
    shutil.copy(shared / "data" / "tokenizers" / "glm-chinese" / "cog-pretrain.model", folder)
    return GLMChineseTokenizer.from_pretrained(folder)


def assert_equal(ours: dict, golden: dict, name: str) -> None:
    expected = {key.partition(".")[2]: tensor for key, tensor in golden.items() if key.startswith(f"{name}.")}
    assert set(ours) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(ours[key], tensor), (name, key)


@pytest.mark.parametrize("mask", ["[MASK]", "[gMASK]", "[sMASK]"])
def test_generation_and_training_inputs(tokenizer, golden, entries, mask):
    context = tokenizer(QUESTION, PREFIX + mask, return_tensors="pt")
    assert context["input_ids"][0].tolist() == entries[f"gen_{mask[1:-1]}"]["context_ids"]
    assert_equal(tokenizer.build_inputs_for_generation(context, max_gen_length=12), golden, f"gen_{mask[1:-1]}")
    made = tokenizer.build_inputs_for_generation(context, targets=[ANSWER], max_gen_length=12)
    assert_equal(made, golden, f"train_{mask[1:-1]}")


@pytest.mark.parametrize("name", ["sft0_64", "sft0_40", "sft1_64", "sft1_40"])
def test_training_inputs_of_one_length(tokenizer, golden, entries, name):
    ids = torch.tensor([entries[name]["context_ids"]])
    length = golden[f"{name}.input_ids"].shape[1]
    made = tokenizer.build_inputs_for_generation(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        targets=[entries[name]["label"]],
        max_gen_length=length - ids.shape[1],
        padding=True,
    )
    assert_equal(made, golden, name)


def batch_of(golden, side: str) -> dict:
    return {name: golden[f"batch_{side}_enc.{name}"] for name in ("input_ids", "attention_mask")}


def test_a_batch_padded_on_the_right(tokenizer, golden):
    context = batch_of(golden, "right")
    assert_equal(tokenizer.build_inputs_for_generation(context, max_gen_length=8), golden, "batch_right_gen")


def test_a_batch_padded_on_the_left_stands_where_it_stands_alone(tokenizer, golden):
    made = tokenizer.build_inputs_for_generation(batch_of(golden, "left"), max_gen_length=8)
    for name in ("input_ids", "generation_attention_mask"):
        assert torch.equal(made[name], golden[f"batch_left_gen.{name}"])
    length = int(golden["batch_left_enc.attention_mask"][1].sum())
    right = golden["batch_right_gen.position_ids"][1]
    left = made["position_ids"][1]
    assert torch.equal(left[:, -8:], right[:, -8:])
    assert torch.equal(left[:, -8 - length : -8], right[:, :length])
    assert not torch.equal(left, golden["batch_left_gen.position_ids"][1])


def test_multiple_choice(tokenizer, golden, entries):
    entry = entries["mc"]
    context = {
        "input_ids": golden["mc.input_ids"][:, :10],
        "attention_mask": torch.tensor(entry["attention_mask_2d"]),
    }
    made = tokenizer.build_inputs_for_multiple_choice(context, entry["choice_ids"])
    assert made["choice_indices"] == entry["choice_indices"]
    for name in ("input_ids", "position_ids", "attention_mask"):
        assert torch.equal(made[name], golden[f"mc.{name}"]), name


def test_a_context_without_a_mask_token(tokenizer):
    context = tokenizer(QUESTION, return_tensors="pt")
    with pytest.raises(ValueError, match=r"^no mask token in the context: put \[MASK\], \[sMASK\] or \[gMASK\] where"):
        tokenizer.build_inputs_for_generation(context)


def test_the_model_lays_out_the_same_ids_in_the_same_way(tokenizer):
    context = tokenizer([QUESTION, QUESTION * 2], [PREFIX + "[gMASK]"] * 2, padding=True, return_tensors="pt")
    made = tokenizer.build_inputs_for_generation(context, targets=[ANSWER, ANSWER], max_gen_length=12)
    model = GLMModel(GLMConfig(hidden_size=8, num_layers=1, num_attention_heads=2))
    mask = torch.nn.functional.pad(context["attention_mask"], (0, 12 - 3), value=1)
    mask = mask[:, : made["input_ids"].shape[1]]
    positions, in_context = model.padded_layout(made["input_ids"], mask)
    counts = mask[:, None].bool().expand_as(positions)
    assert torch.equal(positions[counts], made["position_ids"][counts])
    assert torch.equal(in_context.sum(1), torch.tensor([context["input_ids"].shape[1]] * 2))
