"""LLaMA from transformers against what the published models computed (../shared/golden), and with token trees.

The class is transformers' own; what is ours is the attention "keju", and the promise that old folders load.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM

from keju.models.backbone import tree_logprobs
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]
FORWARD_CASES = [
    *("basic", "long", "longer", "pos", "row0", "row1", "row2", "left_mostly", "loss"),
    *("left", "left_pos", "left_nomask", "right", "right_pos", "right_nomask"),
]
PROMPT, ANSWERS = [1, 10, 11, 12, 13], [[20, 21, 2], [30, 2], [20, 40, 41, 42, 2]]


@pytest.fixture(scope="module", params=["llama", "llama-gqa"])
def folder(shared, request):
    return shared / "golden" / request.param


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def models(folder):
    from keju.models import attention  # noqa: F401  registers "keju"

    return {name: LlamaForCausalLM.from_pretrained(folder, attn_implementation=name) for name in IMPLEMENTATIONS}


def inputs_of(golden: dict, case: str) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: golden[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden}


def assert_logits(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """At real positions: rows of left pads see everything in the original, nothing here."""
    assert ours.shape == theirs.shape
    keep = torch.ones(ours.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(ours[keep], theirs[keep], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", FORWARD_CASES)
@torch.no_grad()
def test_logits_equal_the_original(models, golden, case, implementation):
    inputs = inputs_of(golden, case)
    logits = models[implementation](**inputs).logits
    assert_logits(logits, golden[f"{case}.logits"], inputs.get("attention_mask"))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_a_4d_float_mask_is_added(models, golden, implementation):
    mask = golden["packed.attention_mask"][:, None]
    logits = models[implementation](golden["packed.input_ids"], attention_mask=mask).logits
    assert_logits(logits, golden["packed.logits"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_hidden_states_equal_the_original(models, golden, implementation):
    hidden = models[implementation](golden["basic.input_ids"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden[1], golden["basic.hidden_1"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden[-1], golden["basic.hidden"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["loss", "loss_pads"])
@torch.no_grad()
def test_losses_equal_the_original(models, golden, case, implementation):
    loss = models[implementation](**inputs_of(golden, case), labels=golden[f"{case}.labels"]).loss
    torch.testing.assert_close(loss, golden[f"{case}.loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_original(folder, golden, checkpointing, implementation):
    expected = json.loads((folder / "grads.json").read_text())
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # checkpoints are taken in training mode alone
    model(**inputs_of(golden, "loss"), labels=golden["loss.labels"], use_cache=False).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(expected["grads"])
    for name, gradient in gradients.items():
        theirs = expected["grads"][name]
        assert gradient.norm().item() == pytest.approx(theirs["norm"], rel=1e-4), name
        assert gradient.abs().max().item() == pytest.approx(theirs["absmax"], rel=1e-4), name
        # A sum of parts with both signs cancels: its error follows the size of the parts.
        assert gradient.sum().item() == pytest.approx(theirs["sum"], abs=1e-5 * gradient.abs().sum().item()), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_cache_equals_the_original(models, golden, implementation):
    ids, past, logits = golden["cache.input_ids"], None, []
    for start, end in [(0, 6), *((step, step + 1) for step in range(6, 10))]:
        output = models[implementation](ids[:, start:end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits.append(output.logits)
    assert_logits(torch.cat(logits, 1), golden["cache.logits"])
    torch.testing.assert_close(past.layers[-1].keys, golden["cache.last_layer_key"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(past.layers[-1].values, golden["cache.last_layer_value"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["gen0", "gen1", "gen_left"])
def test_greedy_generation_equals_the_original(models, golden, case, implementation):
    prompt = golden[f"{case}.prompt_ids"]
    mask = golden.get(f"{case}.attention_mask", torch.ones_like(prompt))
    output = models[implementation].generate(prompt, attention_mask=mask, max_new_tokens=16, do_sample=False)
    assert output.tolist() == golden[f"{case}.output_ids"].tolist()
    if len(prompt) == 2:
        assert output[0, 3:].tolist() == golden["gen0.output_ids"][0].tolist(), "left padding changes nothing"
        assert output[1].tolist() == golden["gen1.output_ids"][0].tolist()


def test_trees_equal_rows(models):
    model = models["keju"]
    trees = [Segment(PROMPT, branches=[Segment(ids, True) for ids in ANSWERS]), Segment([1, 50, 51], True)]
    rows = [*((PROMPT + ids, len(PROMPT)) for ids in ANSWERS), ([1, 50, 51], 1)]
    parameters = list(model.parameters())
    ours = tree_logprobs(model, PackedBatch.from_trees(trees)).logprobs
    gradients = torch.autograd.grad(ours.sum(), parameters)
    expected = []
    for row, start in rows:
        ids = torch.tensor([row])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        expected.append(logprobs[start - 1 :])
    torch.testing.assert_close(ours, torch.cat(expected), atol=2e-5, rtol=1e-5)
    for gradient, theirs in zip(gradients, torch.autograd.grad(torch.cat(expected).sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("file", ["config.json", "config.upstream_style.json"])
def test_folders_load_and_save_under_the_original_names(folder, golden, tmp_path, file):
    if not (folder / file).exists():
        pytest.skip(f"{folder.name} has no {file}")
    shutil.copy(folder / file, tmp_path / "config.json")
    shutil.copy(folder / "model.safetensors", tmp_path)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is LlamaForCausalLM
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    model.save_pretrained(tmp_path / "saved")
    original = load_file(folder / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(saved) == {name for name in original if not name.endswith(".rotary_emb.inv_freq")}
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_logits(again(golden["basic.input_ids"]).logits, golden["basic.logits"])


@torch.no_grad()
def test_bfloat16(folder, golden):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="keju")
    logits = model(golden["left.input_ids"], attention_mask=golden["left.attention_mask"]).logits
    assert logits.dtype == torch.bfloat16
    real = golden["left.attention_mask"].bool()
    error = (logits.float() - golden["left.logits"])[real]
    assert error.norm() < 0.05 * golden["left.logits"][real].norm()


@torch.no_grad()
def test_reward_model_starts_from_a_language_model(folder, golden):
    load = AutoModelForSequenceClassification.from_pretrained
    model, info = load(folder, num_labels=1, attn_implementation="keju", output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    scores = []
    for side, last in [("left", torch.tensor([11, 11, 11])), ("right", torch.tensor([11, 6, 3]))]:
        ids, mask = golden[f"{side}.input_ids"], golden[f"{side}.attention_mask"]
        hidden = model.model(ids, attention_mask=mask).last_hidden_state[torch.arange(3), last]
        scores.append(model(ids, attention_mask=mask).logits)
        torch.testing.assert_close(scores[-1], model.score(hidden))
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)
