"""Qwen against what the published code computed (../shared/golden/qwen)."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from keju.models.qwen import QWenForCausalLM, QWenForSequenceClassification, ntk_alpha

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]
# Evaluation past seq_length = 32 included: dynamic NTK and LogN act in most of the len* cases.
FORWARD_CASES = [
    *("basic", "row0", "row1", "row2", "left_nomask", "right_nomask", "long", "eval_after_train"),
    *("len31", "len32", "len33", "len40", "len64", "len65", "len100", "len128"),
]


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "qwen"


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def models(folder):
    return {name: QWenForCausalLM.from_pretrained(folder, attn_implementation=name) for name in IMPLEMENTATIONS}


@pytest.fixture
def model(folder):
    return QWenForCausalLM.from_pretrained(folder)


@pytest.fixture
def undropped(folder):
    """A model whose training mode drops nothing out."""
    return QWenForCausalLM.from_pretrained(folder, embd_pdrop=0.0)


def inputs_of(golden: dict, case: str) -> dict[str, torch.Tensor]:
    """Without the masks: the original ignored them, and what it made of pads is no target."""
    return {name: golden[f"{case}.{name}"] for name in ("input_ids", "labels") if f"{case}.{name}" in golden}


def assert_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and attention_mask, int64 [B, T], with 500 (also the end token) for a pad."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), 500), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = torch.tensor(row), 1
    return ids, mask


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", FORWARD_CASES)
@torch.no_grad()
def test_logits_equal_the_original(models, golden, case, implementation):
    assert_logits(models[implementation](**inputs_of(golden, case)).logits, golden[f"{case}.logits"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
@pytest.mark.parametrize("case", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_the_unpadded_rows_of_the_original(models, golden, case, dtype, implementation):
    mask = golden[f"{case}.attention_mask"]
    logits = models[implementation](golden[f"{case}.input_ids"], attention_mask=mask.to(dtype)).logits
    assert not logits.isnan().any()
    for index in range(3):
        assert_logits(logits[index][mask[index].bool()], golden[f"row{index}.logits"][0])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_long_padded_rows_equal_the_original(models, golden, side):
    """Each row has its own NTK factor (7, 3, 1 and 1) and its own LogN positions."""
    cases = ["len100", "len40", "len31", "row1"]
    ids, mask = padded([golden[f"{case}.input_ids"][0].tolist() for case in cases], side)
    logits = models["sdpa"](ids, attention_mask=mask).logits
    for index, case in enumerate(cases):
        assert_logits(logits[index][mask[index].bool()], golden[f"{case}.logits"][0])


def test_ntk_alpha(folder):
    lengths, factors = zip(*json.loads((folder / "meta.json").read_text())["ntk_alpha_by_length"], strict=True)
    assert ntk_alpha(torch.tensor(lengths), 32).tolist() == list(factors)
    assert ntk_alpha(torch.tensor([1, 2048, 2049, 4096, 4097, 8192, 8193]), 2048).tolist() == [1, 1, 3, 3, 7, 7, 15]


def test_training_uses_neither_remedy_whatever_was_evaluated_before(undropped, golden):
    with torch.no_grad():
        undropped(golden["len100.input_ids"])
        undropped.train()
        assert_logits(undropped(golden["train_len100.input_ids"]).logits, golden["train_len100.logits"])
        ids = golden["train_after_eval100.input_ids"]
        # The original reuses the factor of the evaluation here.
        assert_logits(undropped(ids).logits, golden["eval_after_train.logits"])
        assert not torch.allclose(undropped(ids).logits, golden["train_after_eval100.logits"], atol=1e-2)


@torch.no_grad()
def test_the_config_turns_the_remedies_off(folder, golden):
    ids = golden["train_len100.input_ids"]
    plain = QWenForCausalLM.from_pretrained(folder, use_dynamic_ntk=False, use_logn_attn=False)
    assert_logits(plain(ids).logits, golden["train_len100.logits"])
    for name in ("use_dynamic_ntk", "use_logn_attn"):
        one = QWenForCausalLM.from_pretrained(folder, **{name: False})
        assert not torch.allclose(one(ids).logits, golden["train_len100.logits"], atol=1e-2)
        assert not torch.allclose(one(ids).logits, golden["len100.logits"], atol=1e-2)


@torch.no_grad()
def test_hidden_states_equal_the_original(models, golden):
    output = models["sdpa"](golden["basic.input_ids"], output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert_logits(output.hidden_states[1], golden["basic.hidden_1"])
    # The original lists what enters each block, and nothing after the last.
    assert_logits(output.hidden_states[2], golden["basic.hidden"])


def test_losses_equal_the_original(model, golden):
    for case in ("loss", "loss_pads"):
        loss = model(**inputs_of(golden, case)).loss
        torch.testing.assert_close(loss, golden[f"{case}.loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_original(undropped, golden, folder, checkpointing):
    expected = json.loads((folder / "grads.json").read_text())
    if checkpointing:
        undropped.gradient_checkpointing_enable()
        undropped.train()  # checkpoints are taken in training mode alone
    undropped(**inputs_of(golden, "loss"), use_cache=False).loss.backward()
    gradients = {name: parameter.grad for name, parameter in undropped.named_parameters()}
    assert set(gradients) == set(expected["grads"])
    for name, gradient in gradients.items():
        theirs = expected["grads"][name]
        assert gradient.norm().item() == pytest.approx(theirs["norm"], rel=1e-4), name
        assert gradient.abs().max().item() == pytest.approx(theirs["absmax"], rel=1e-4), name
        # A sum of parts with both signs cancels: its error follows the size of the parts.
        assert gradient.sum().item() == pytest.approx(theirs["sum"], abs=1e-5 * gradient.abs().sum().item()), name


def continued(model, ids, prefill: int, step: int = 1, mask=None) -> tuple[torch.Tensor, DynamicCache]:
    """Logits of `prefill` tokens at once and the rest `step` at a time, and the cache."""

    def seen(end):
        return None if mask is None else mask[:, :end]

    output = model(ids[:, :prefill], attention_mask=seen(prefill), use_cache=True)
    logits = [output.logits]
    for start in range(prefill, ids.shape[1], step):
        end = start + step
        output = model(ids[:, start:end], attention_mask=seen(end), past_key_values=output.past_key_values)
        logits.append(output.logits)
    return torch.cat(logits, 1), output.past_key_values


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("step", [1, 2])
@torch.no_grad()
def test_cache_equals_the_original(models, golden, implementation, step):
    logits, cache = continued(models[implementation], golden["cache.input_ids"], 6, step)
    assert_logits(logits, golden["cache.logits"])
    # The original keeps [batch, time, heads, head_dim].
    assert_logits(cache.layers[-1].keys.transpose(1, 2), golden["cache.last_layer_key"])
    assert_logits(cache.layers[-1].values.transpose(1, 2), golden["cache.last_layer_value"])


@torch.no_grad()
def test_a_cache_keeps_the_ntk_factor_of_its_prompt(models, golden):
    ids, model = golden["cache_over.input_ids"], models["sdpa"]
    logits, _ = continued(model, ids, 30)
    assert_logits(logits, golden["cache_over.logits"])
    assert_logits(model(ids).logits, golden["cache_over.full_logits"])

    # Another evaluation between the steps does not matter, nor do pads.
    rows, mask = padded([golden["len64.input_ids"][0, :50].tolist(), ids[0].tolist()], "left")
    together, _ = continued(model, rows, 40, mask=mask)
    alone, _ = continued(model, rows[1:, 10:], 30)
    assert_logits(together[1, 10:], alone[0])
    first, _ = continued(model, rows[:1], 40)
    assert_logits(together[0], first[0])


@torch.no_grad()
def test_the_ntk_factors_follow_the_rows_of_a_cache(models, golden):
    """Reordered and repeated rows keep the factor of their own prompt, as long as the mask comes along."""
    model = models["sdpa"]
    rows, mask = padded([golden["len64.input_ids"][0, :40].tolist(), golden["row1.input_ids"][0].tolist()], "left")
    expected, _ = continued(model, rows, 36, step=4, mask=mask)
    order = torch.tensor([1, 1, 0])
    cache = model(rows[:, :36], attention_mask=mask[:, :36], use_cache=True).past_key_values
    cache.batch_select_indices(order)
    logits = model(rows[order, 36:], attention_mask=mask[order], past_key_values=cache).logits
    assert_logits(logits, expected[order, 36:])
    # A cache that starts over has a new prompt.
    cache.reset()
    first = model(rows[:1, :20], past_key_values=cache).logits
    second = model(rows[:1, 20:], past_key_values=cache).logits
    assert_logits(torch.cat([first, second], 1), continued(model, rows[:1], 20, step=20)[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["gen0", "gen1", "gen_over", "gen50"])
@torch.no_grad()
def test_greedy_generation_equals_the_original(models, golden, case, implementation):
    prompt, model = golden[f"{case}.prompt_ids"], models[implementation]
    lengths = []
    hook = model.transformer.wte.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    hook.remove()
    assert output.tolist() == golden[f"{case}.output_ids"].tolist()
    assert lengths == [prompt.shape[1]] + [1] * 15, "the cache holds all but the newest token"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_left_padded_batch_generates_what_each_prompt_alone_does(models, golden, implementation):
    cases = ["gen0", "gen1", "gen_over", "gen50"]
    ids, mask = padded([golden[f"{case}.prompt_ids"][0].tolist() for case in cases], "left")
    output = models[implementation].generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    for row, case in zip(output, cases, strict=True):
        assert row[50:].tolist() == golden[f"{case}.output_ids"][0, -16:].tolist()


@torch.no_grad()
def test_beams_of_a_left_padded_batch(models, golden):
    model = models["sdpa"]
    prompts = [golden[f"{case}.prompt_ids"][0].tolist() for case in ("gen0", "gen50")]
    ids, mask = padded(prompts, "left")
    search = dict(max_new_tokens=6, num_beams=3, do_sample=False)
    together = model.generate(ids, attention_mask=mask, **search)
    for row, prompt in zip(together, prompts, strict=True):
        alone = torch.tensor([prompt])
        expected = model.generate(alone, attention_mask=torch.ones_like(alone), **search)
        assert row[50:].tolist() == expected[0, len(prompt) :].tolist()


def test_the_later_published_names_mean_the_same(folder, golden, tmp_path):
    config = json.loads((folder / "config.upstream_style.json").read_text())
    for old, new in {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "ffn_hidden_size": "intermediate_size",
        "embd_pdrop": "emb_dropout_prob",
        "attn_pdrop": "attn_dropout_prob",
    }.items():
        config[new] = config.pop(old)
    # The later files leave the ids to generation_config.json, and Qwen's own are the defaults.
    del config["bos_token_id"], config["eos_token_id"], config["padded_vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", tmp_path)
    model = QWenForCausalLM.from_pretrained(tmp_path)
    assert_logits(model(golden["len40.input_ids"]).logits, golden["len40.logits"])
    assert (model.config.n_positions, model.config.embd_pdrop) == (128, 0.1)
    assert model.generation_config.eos_token_id == 151643
    model.save_pretrained(tmp_path)
    assert_logits(QWenForCausalLM.from_pretrained(tmp_path)(golden["basic.input_ids"]).logits, golden["basic.logits"])


def test_missing_weights_are_reported(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.0.attn.c_attn.bias"]
    weights["transformer.rotary_emb.inv_freq"] = torch.zeros(8)
    weights["transformer.h.0.attn.stray"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    _, info = QWenForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"transformer.h.0.attn.c_attn.bias"}
    assert set(info["unexpected_keys"]) == {"transformer.h.0.attn.stray"}


def test_reward_model_starts_from_a_language_model(folder, golden, tmp_path):
    model, info = QWenForSequenceClassification.from_pretrained(
        folder, num_labels=1, pad_token_id=499, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"score.weight"}
    assert not info["unexpected_keys"]
    assert model.score.bias is None
    ids, mask = golden["left.input_ids"], golden["left.attention_mask"]
    scores = model(ids, attention_mask=mask).logits
    hidden = model.transformer(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(scores, model.score(hidden[:, -1]))  # the pads are on the left
    model.save_pretrained(tmp_path)
    again = QWenForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(ids, attention_mask=mask).logits, scores)


@torch.no_grad()
def test_logits_to_keep_and_embeddings(models, golden):
    ids, model = golden["basic.input_ids"], models["sdpa"]
    everything = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    kept = torch.tensor([0, 5])
    torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, everything[:, kept])
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, everything)
