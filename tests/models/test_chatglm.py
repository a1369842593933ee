"""ChatGLM-6B against what the published code computed (../shared/golden/chatglm)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from keju.models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMRotaryEmbedding
from keju.models.chatglm2 import ChatGLM2Config

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]
FORWARD = [*("basic", "mask_b1", "mask_and_gmask", "right", "row0", "row1", "row2", "long", "long_mask")]
MASK, GMASK, SOP, EOP, PAD = 500, 501, 504, 505, 3


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "chatglm"


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def models(folder):
    return {
        name: ChatGLMForConditionalGeneration.from_pretrained(folder, attn_implementation=name)
        for name in IMPLEMENTATIONS
    }


@pytest.fixture
def model(folder):
    return ChatGLMForConditionalGeneration.from_pretrained(folder)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", FORWARD)
@torch.no_grad()
def test_logits_equal_the_original(models, golden, case, implementation):
    model, ids = models[implementation], golden[f"{case}.input_ids"]
    assert_close(model(ids).logits, golden[f"{case}.logits"])
    if f"{case}.position_ids" in golden:
        positions, _ = model.transformer.padded_layout(ids, torch.ones_like(ids), generated=False)
        assert torch.equal(positions, golden[f"{case}.position_ids"])


@pytest.mark.parametrize("case", ["mask_same_ctx", "mask_diff_ctx", "dead_row", "all_false_mask"])
@torch.no_grad()
def test_given_masks_and_positions_are_used(models, golden, case):
    """Also those that rows of one batch overwrote for each other in the original (mask_same_ctx, mask_diff_ctx)."""
    inputs = {"position_ids": golden[f"{case}.position_ids"]} if f"{case}.position_ids" in golden else {}
    visible = 1 - golden[f"{case}.attention_mask"] if f"{case}.attention_mask" in golden else None
    for name in ("eager", "sdpa"):
        output = models[name](golden[f"{case}.input_ids"], attention_mask=visible, **inputs)
        assert_close(output.logits, golden[f"{case}.logits"])


@pytest.mark.parametrize("case", ["mask_same_ctx", "mask_diff_ctx"])
@torch.no_grad()
def test_rows_of_a_batch_do_not_overwrite_each_others_positions(models, golden, case):
    ids = golden[f"{case}.input_ids"]
    together = models["sdpa"](ids).logits
    for row in range(len(ids)):
        assert_close(together[row], models["sdpa"](ids[row : row + 1]).logits[0])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_rows_equal_unpadded_rows(models, golden, side):
    ids = golden[f"{side}.input_ids"]
    mask = (ids != PAD).long()
    output = models["sdpa"](ids, attention_mask=mask).logits
    for row in range(3):
        assert_close(output[row][mask[row].bool()], golden[f"row{row}.logits"][0])


@torch.no_grad()
def test_hidden_states_equal_the_original_batch_first(models, golden):
    hidden = models["sdpa"].transformer(golden["basic.input_ids"]).last_hidden_state
    assert_close(hidden, golden["basic.hidden"])


@torch.no_grad()
def test_a_row_without_a_start_token_is_context(models):
    """All of it is seen from everywhere: the first token's output depends on the last one."""
    first, second = (models["sdpa"](torch.tensor([[7, 8, 9, last]])).logits[0, 0] for last in (10, 11))
    assert not torch.allclose(first, second)


def test_losses_equal_the_original(model, golden):
    inputs = {"input_ids": golden["loss.input_ids"], "labels": golden["loss.labels"]}
    torch.testing.assert_close(model(**inputs).loss, golden["loss.loss"], atol=1e-5, rtol=0)
    inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == PAD, -100)
    torch.testing.assert_close(model(**inputs).loss, golden["loss.loss"], atol=1e-5, rtol=0)


def test_gradients_equal_the_original(model, golden, folder):
    expected = json.loads((folder / "grads.json").read_text())["grads"]
    model(golden["loss.input_ids"], labels=golden["loss.labels"], use_cache=False).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == {
        name for name, value in expected.items() if value is not None and name != "lm_head.weight"
    }
    for name, gradient in gradients.items():
        # keys are shifted alike by their bias: zero up to rounding, so that norms of small ones are compared absolutely
        assert gradient.norm().item() == pytest.approx(expected[name]["norm"], rel=1e-4, abs=1e-5), name
        assert gradient.abs().max().item() == pytest.approx(expected[name]["absmax"], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["gen0", "gen1", "gen2"])
def test_greedy_generation_equals_the_original(models, golden, case, implementation):
    model, fed = models[implementation], []
    hook = model.transformer.rotary_emb.register_forward_hook(lambda module, args, out: fed.append(args[1][0, :, -1]))
    prompt = golden[f"{case}.prompt_ids"]
    output = model.generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=None)
    hook.remove()
    assert output.tolist() == golden[f"{case}.output_ids"].tolist()
    assert torch.equal(torch.stack(fed), golden[f"{case}.token_positions"][0])


def test_left_padded_generation_equals_one_by_one(models, golden):
    prompt = golden["gen_left.prompt_ids"]
    mask = (prompt != PAD).long()
    output = models["sdpa"].generate(prompt, attention_mask=mask, max_new_tokens=16, do_sample=False, eos_token_id=None)
    for row, case in enumerate(("gen0", "gen1")):
        assert output[row, prompt.shape[1] :].tolist() == golden[f"{case}.output_ids"][0, -16:].tolist()


@torch.no_grad()
def test_trees_stand_where_generation_puts_tokens(models, golden):
    """The original's forward pass over a whole [gMASK] row has other positions than its generation: we train these."""
    ids = golden["gen0.output_ids"]
    backbone = models["sdpa"].transformer
    row = torch.zeros_like(ids[0])
    positions = backbone.layout(ids[0], torch.arange(ids.shape[1]), row, 1).position_ids
    assert torch.equal(positions[:, 7:-1].T, golden["gen0.token_positions"][0])


def test_rotary_frequencies_are_rounded_as_in_the_original(golden):
    rotary = ChatGLMRotaryEmbedding(ChatGLMConfig())
    cos, _ = rotary(torch.zeros(1), torch.ones(1, 2, 1, dtype=torch.long))
    torch.testing.assert_close(cos[0, 0, :32], golden["rotary.as_used"].cos(), atol=1e-6, rtol=0)
    assert not torch.allclose(cos[0, 0, :32], golden["rotary.exact"].cos(), atol=1e-6, rtol=0)


def test_mask_tokens_stand_where_the_vocabulary_has_them(folder):
    config = ChatGLMConfig.from_pretrained(folder)
    assert (config.mask_token_id, config.gmask_token_id) == (MASK, GMASK)
    assert (ChatGLMConfig().mask_token_id, ChatGLMConfig().gmask_token_id) == (150000, 150001)
    later = ChatGLMConfig(bos_token_id=130004, eos_token_id=130005, mask_token_id=130000, gmask_token_id=130001)
    assert (later.mask_token_id, later.gmask_token_id) == (130000, 130001)


def test_the_fields_tell_it_from_chatglm2():
    assert ChatGLMConfig.describes(ChatGLMConfig().to_dict())
    assert not ChatGLMConfig.describes(ChatGLM2Config().to_dict())
    assert ChatGLM2Config.describes(ChatGLM2Config().to_dict())
    assert not ChatGLM2Config.describes(ChatGLMConfig().to_dict())


def test_errors_are_one_line(models):
    ids = torch.tensor([[5, GMASK, SOP, 6]])
    cache = models["sdpa"](ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="^with a cache position_ids are needed: they depend on the context$"):
        models["sdpa"](ids[:, -1:], past_key_values=cache)
    with pytest.raises(ValueError, match="^quantization_bit=4 is not supported for ChatGLM models$"):
        ChatGLMConfig(quantization_bit=4)
