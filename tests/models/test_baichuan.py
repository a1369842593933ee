"""Baichuan against what the published code computed (../shared/golden/baichuan-*)."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from keju.models.baichuan import BaichuanForCausalLM, BaichuanForSequenceClassification, alibi_slopes

SIZES = ["7B", "13B"]
IMPLEMENTATIONS = ["eager", "sdpa", "keju"]
FORWARD_CASES = ["basic", "row0", "row1", "row2", "left_nomask", "right_nomask", "long", "longer", "pos"]
END = 2


@pytest.fixture(scope="module", params=SIZES)
def folder(shared, request):
    return shared / "golden" / f"baichuan-{request.param}"


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def models(folder):
    return {name: BaichuanForCausalLM.from_pretrained(folder, attn_implementation=name) for name in IMPLEMENTATIONS}


@pytest.fixture
def model(folder):
    return BaichuanForCausalLM.from_pretrained(folder)


def inputs_of(golden: dict, case: str) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    return {name: golden[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden}


def assert_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", FORWARD_CASES)
@torch.no_grad()
def test_logits_equal_the_original(models, golden, case, implementation):
    if f"{case}.logits" not in golden:
        pytest.skip("the original 13B takes no positions")
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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_pads_between_tokens_change_nothing(models, golden, implementation):
    """Rotary and ALiBi see positions that count the tokens that count; the query and the cache see them alike."""
    ids, mask = golden["row0.input_ids"], torch.ones(1, 14, dtype=torch.long)
    mask[0, 3:5] = 0
    padded = torch.cat([ids[:, :3], torch.tensor([[7, 7]]), ids[:, 3:]], dim=1)
    model, expected = models[implementation], golden["row0.logits"][0]
    assert_logits(model(padded, attention_mask=mask).logits[0, mask[0].bool()], expected)
    cache = model(padded[:, :8], attention_mask=mask[:, :8], use_cache=True).past_key_values
    assert_logits(model(padded[:, 8:], attention_mask=mask, past_key_values=cache).logits[0], expected[6:])


@torch.no_grad()
def test_hidden_states_equal_the_original(models, golden):
    output = models["sdpa"](golden["basic.input_ids"], output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert_logits(output.hidden_states[1], golden["basic.hidden_1"])
    assert_logits(output.hidden_states[3], golden["basic.hidden"])


def test_losses_equal_the_original(model, golden):
    inputs, expected = inputs_of(golden, "loss"), golden["loss.loss"]
    torch.testing.assert_close(model(**inputs).loss, expected, atol=1e-5, rtol=0)
    # Pads are trained on where nothing says otherwise, and positions go on counting through them.
    loss = model(**inputs_of(golden, "loss_pads"), position_ids=torch.arange(12)[None]).loss
    torch.testing.assert_close(loss, golden["loss_pads.loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_original(model, golden, folder, checkpointing):
    expected = json.loads((folder / "grads.json").read_text())
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # checkpoints are taken in training mode alone; nothing drops out
    model(**inputs_of(golden, "loss"), use_cache=False).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == set(expected["grads"])
    for name, gradient in gradients.items():
        theirs = expected["grads"][name]
        assert gradient.norm().item() == pytest.approx(theirs["norm"], rel=1e-4), name
        assert gradient.abs().max().item() == pytest.approx(theirs["absmax"], rel=1e-4), name
        # A sum of parts with both signs cancels: its error follows the size of the parts.
        assert gradient.sum().item() == pytest.approx(theirs["sum"], abs=1e-5 * gradient.abs().sum().item()), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("step", [1, 2])
@torch.no_grad()
def test_cache_equals_the_original(models, golden, implementation, step):
    ids = golden["cache.input_ids"]
    output = models[implementation](ids[:, :6], use_cache=True)
    logits = [output.logits]
    for start in range(6, 10, step):
        output = models[implementation](ids[:, start : start + step], past_key_values=output.past_key_values)
        logits.append(output.logits)
    assert_logits(torch.cat(logits, 1), golden["cache.logits"])
    last = output.past_key_values.layers[-1]
    assert_logits(last.keys, golden["cache.last_layer_key"])
    assert_logits(last.values, golden["cache.last_layer_value"])


def until_end(golden: dict, case: str) -> list[int]:
    """What the original generated, which went on after its end token."""
    new = golden[f"{case}.output_ids"][0, golden[f"{case}.prompt_ids"].shape[1] :].tolist()
    return new[: new.index(END) + 1] if END in new else new


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["gen0", "gen1"])
@torch.no_grad()
def test_greedy_generation_equals_the_original(models, golden, case, implementation):
    prompt, model = golden[f"{case}.prompt_ids"], models[implementation]
    expected = until_end(golden, case)
    lengths = []
    hook = model.model.embed_tokens.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    hook.remove()
    assert output[0, prompt.shape[1] :].tolist() == expected
    assert lengths == [prompt.shape[1]] + [1] * (len(expected) - 1), "the cache holds all but the newest token"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("arguments", [{}, {"cache_implementation": "static", "disable_compile": True}])
@torch.no_grad()
def test_left_padded_batch_generates_what_each_prompt_alone_does(models, golden, implementation, arguments):
    output = models[implementation].generate(
        golden["gen_left.prompt_ids"],
        attention_mask=golden["gen_left.attention_mask"],
        max_new_tokens=16,
        do_sample=False,
        **arguments,
    )
    for row, case in enumerate(("gen0", "gen1")):
        expected = until_end(golden, case)
        assert output[row, 9 : 9 + len(expected)].tolist() == expected


@torch.no_grad()
def test_beams_of_a_left_padded_batch(models, golden):
    ids, mask = golden["gen_left.prompt_ids"], golden["gen_left.attention_mask"]
    search = dict(max_new_tokens=6, num_beams=3, do_sample=False)
    together = models["sdpa"].generate(ids, attention_mask=mask, **search)
    for row in range(2):
        alone = ids[row, mask[row].bool()][None]
        expected = models["sdpa"].generate(alone, attention_mask=torch.ones_like(alone), **search)
        assert together[row, 9:].tolist() == expected[0, alone.shape[1] :].tolist()


def test_ids_that_a_folder_leaves_out_are_those_of_the_published_vocabulary(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", tmp_path)
    generation = BaichuanForCausalLM.from_pretrained(tmp_path).generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)


def test_missing_weights_are_reported(folder, tmp_path):
    """Ignoring the buffers of old checkpoints must not hide anything else."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.self_attn.W_pack.weight"]
    weights["model.layers.0.self_attn.stray"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", tmp_path)
    _, info = BaichuanForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"model.layers.0.self_attn.W_pack.weight"}
    assert set(info["unexpected_keys"]) == {"model.layers.0.self_attn.stray"}


def test_reward_model_starts_from_a_language_model(folder, golden, tmp_path):
    model, info = BaichuanForSequenceClassification.from_pretrained(folder, num_labels=1, output_loading_info=True)
    assert set(info["missing_keys"]) == {"score.weight"}
    assert not info["unexpected_keys"]
    assert model.score.bias is None
    ids, mask = golden["left.input_ids"], golden["left.attention_mask"]
    scores = model(ids, attention_mask=mask).logits
    hidden = model.model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(scores, model.score(hidden[:, -1]))  # the pads are on the left
    model.save_pretrained(tmp_path)
    again = BaichuanForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(ids, attention_mask=mask).logits, scores)


@torch.no_grad()
def test_logits_to_keep_and_embeddings(models, golden):
    ids, model = golden["basic.input_ids"], models["sdpa"]
    everything = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, everything[:, -2:])
    kept = torch.tensor([0, 5])
    torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, everything[:, kept])
    torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, everything)


def test_alibi_equals_the_original(shared):
    golden = load_file(shared / "golden" / "baichuan-13B" / "golden.safetensors")
    for heads in (6, 32, 40):
        torch.testing.assert_close(alibi_slopes(heads), golden[f"alibi.slopes_{heads}"])
