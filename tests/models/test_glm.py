"""GLM against what the published code computed (../shared/golden/glm)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import GlmConfig

from keju.models.glm import GLMConfig, GLMForConditionalGeneration, GLMForMultipleChoice, GLMModel

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]
DIRECT = [
    *("plain_none", "plain_none_b1", "plain_sep_scalar", "plain_sep_vec", "plain_mask4d", "plain_mask4d_wide"),
    *("plain_pos", "plain_dead_row", "long", "pos_last", "left_4d", "right_4d"),
]
HELPER_MODES = ["gmask", "mask", "smask", "multi"]
SOP, EOP, PAD = 506, 507, 500


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "glm"


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def models(folder):
    return {
        name: GLMForConditionalGeneration.from_pretrained(folder, attn_implementation=name) for name in IMPLEMENTATIONS
    }


@pytest.fixture
def model(folder):
    return GLMForConditionalGeneration.from_pretrained(folder)


def inputs_of(golden: dict, case: str, *names: str) -> dict[str, torch.Tensor]:
    names = names or ("input_ids", "attention_mask", "position_ids", "labels")
    return {name: golden[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", DIRECT)
@torch.no_grad()
def test_logits_equal_the_original(models, golden, case, implementation):
    assert_close(models[implementation](**inputs_of(golden, case)).logits, golden[f"{case}.logits"])


@pytest.mark.parametrize("side", ["right", "left", "padded"])
@pytest.mark.parametrize("mode", HELPER_MODES)
def test_what_the_helper_makes_equals_the_original(models, golden, mode, side):
    case = f"train_{mode}_{side}"
    with torch.no_grad():
        output = models["sdpa"](**inputs_of(golden, case))
    assert_close(output.logits, golden[f"{case}.logits"])
    torch.testing.assert_close(output.loss, golden[f"{case}.loss"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_row_without_a_start_token_is_context(models, golden):
    inputs = inputs_of(golden, "plain_mask2d")
    places = torch.arange(12).expand(3, -1)
    # the original counts positions through the pads
    positions = torch.stack([places, torch.zeros_like(places)], dim=1)
    assert_close(models["sdpa"](**inputs, position_ids=positions).logits, golden["plain_mask2d.logits"])


@pytest.mark.parametrize("mode", HELPER_MODES)
@torch.no_grad()
def test_ids_and_padding_mask_are_enough(models, golden, mode):
    """Positions and mask of the helper follow from the ids of a row; padding on the left does not change the row."""
    ids, context = golden[f"train_{mode}_right.input_ids"], golden[f"train_{mode}_right.ctx_attention_mask"]
    mask = torch.nn.functional.pad(context, (0, ids.shape[1] - context.shape[1]), value=1)
    expected = golden[f"train_{mode}_right.logits"]
    generated = (torch.arange(ids.shape[1]) >= context.shape[1]).expand_as(ids)
    output = models["sdpa"](ids, attention_mask=mask).logits
    assert_close(output[generated], expected[generated])

    left = golden[f"train_{mode}_left.input_ids"]
    context = golden[f"train_{mode}_left.ctx_attention_mask"]
    mask = torch.nn.functional.pad(context, (0, left.shape[1] - context.shape[1]), value=1)
    output = models["sdpa"](left, attention_mask=mask).logits
    for row, number in enumerate(context.sum(1).tolist()):
        alone = left[row : row + 1, context.shape[1] - number :]
        own = models["sdpa"](alone, attention_mask=torch.ones_like(alone)).logits[0]
        assert_close(output[row, context.shape[1] :], own[number:])


@torch.no_grad()
def test_a_mask_of_one_column_is_a_padding_mask(models):
    """The original would read it as the prefix lengths of its rows."""
    ids = torch.tensor([[7], [8]])
    expected = models["sdpa"](ids).logits
    assert_close(models["sdpa"](ids, attention_mask=torch.ones(2, 1, dtype=torch.long)).logits, expected)


def test_a_label_of_minus_100_is_a_pad(model, golden):
    inputs = inputs_of(golden, "train_gmask_right")
    labels = inputs["labels"].masked_fill(inputs["labels"] == PAD, -100)
    loss = model(**{**inputs, "labels": labels}).loss
    torch.testing.assert_close(loss, golden["train_gmask_right.loss"], atol=1e-5, rtol=0)


def test_gradients_equal_the_original_and_reach_the_embedding(model, golden, folder):
    expected = json.loads((folder / "grads.json").read_text())["grads"]
    model(**inputs_of(golden, "train_gmask_right"), use_cache=False).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    # a parameter here, a buffer that nothing trains in the original
    assert gradients.pop("glm.word_embeddings.weight").norm() > 0.1
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        assert gradient.norm().item() == pytest.approx(expected[name]["norm"], rel=1e-4, abs=1e-6), name
        assert gradient.abs().max().item() == pytest.approx(expected[name]["absmax"], rel=1e-4, abs=1e-6), name


@torch.no_grad()
def test_hidden_states_equal_the_original(models, golden):
    ids, mask = golden["model.input_ids"], golden["model.attention_mask"]
    output = models["sdpa"].glm(ids, attention_mask=mask, output_hidden_states=True)
    for number in range(3):
        assert_close(output.hidden_states[number], golden[f"model.mem{number}"])
    assert_close(output.last_hidden_state, golden["model_nopredict.logits"])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_chunks_with_a_cache_equal_the_original(models, golden, implementation):
    ids, positions = golden["mems.input_ids"], golden["mems.position_ids"]
    logits, cache = [], None
    for start, end in ((0, 6), (6, 9), (9, 10)):
        output = models[implementation](
            ids[:, start:end], position_ids=positions[..., start:end], past_key_values=cache, use_cache=True
        )
        logits.append(output.logits)
        cache = output.past_key_values
    assert_close(torch.cat(logits, 1), golden["mems.logits"])
    assert cache.get_seq_length() == 10


@pytest.mark.parametrize("case", ["gen0", "gen1", *(f"gen_{mode}_right" for mode in HELPER_MODES)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_greedy_generation_equals_the_original(models, golden, case, implementation):
    """From what build_inputs_for_generation makes, and from the ids with a padding mask."""
    source = case if f"{case}.position_ids" in golden else case.replace("gen_", "geninput_")
    helper = inputs_of(golden, source, "position_ids", "generation_attention_mask")
    prompt, expected = golden[f"{case}.prompt_ids"], golden[f"{case}.output_ids"].tolist()
    settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
    model, lengths = models[implementation], []
    hook = model.glm.word_embeddings.register_forward_hook(lambda module, args, out: lengths.append(args[0].shape[1]))
    output = model.generate(prompt, **helper, **settings)
    hook.remove()
    assert output.tolist() == expected
    assert lengths == [prompt.shape[1]] + [1] * 15, "the cache holds all but the newest token"
    mask = helper["generation_attention_mask"][:, 0, -1, : prompt.shape[1]]
    assert model.generate(prompt, attention_mask=mask, **settings).tolist() == expected


def test_without_a_mask_an_end_token_in_the_context_is_no_padding(models, golden):
    prompt = golden["gen0.prompt_ids"]
    assert PAD in prompt
    output = models["sdpa"].generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=None)
    assert output.tolist() == golden["gen0.output_ids"].tolist()


@torch.no_grad()
def test_multiple_choice_equals_the_original(folder, golden):
    model = GLMForMultipleChoice.from_pretrained(folder)
    choices = json.loads((folder / "mc.json").read_text())
    inputs = inputs_of(golden, "mc")
    output = model(**inputs, choice_ids=choices["choice_ids"], choice_indices=choices["choice_indices"])
    assert_close(output.logits, golden["mc.logits"])
    torch.testing.assert_close(output.loss, golden["mc.loss"], atol=1e-5, rtol=0)


def test_special_tokens_stand_where_the_vocabulary_has_them(folder):
    config = GLMConfig.from_pretrained(folder)
    assert (config.sop_token_id, config.eop_token_id, config.eos_token_id) == (SOP, EOP, EOP)
    assert (config.mask_token_id, config.smask_token_id, config.gmask_token_id) == (503, 508, 509)
    real = GLMConfig()
    assert (real.sop_token_id, real.eop_token_id, real.gmask_token_id) == (50006, 50007, 50009)
    assert GLMConfig(sop_token_id=3).sop_token_id == 3


def test_the_fields_tell_it_from_glm_4():
    assert GLMConfig.describes(GLMConfig().to_dict())
    assert not GLMConfig.describes(GlmConfig().to_dict())


def test_errors_are_one_line():
    config = GLMConfig(vocab_size=520, hidden_size=16, num_layers=1, num_attention_heads=2, max_sequence_length=8)
    model = GLMModel(config)
    with pytest.raises(ValueError, match="^give either input_ids or inputs_embeds$"):
        model()
    with pytest.raises(ValueError, match="^a 2-D attention mask needs input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 16), attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="^hidden_size 10 is not a multiple of 4 heads$"):
        GLMConfig(hidden_size=10, num_attention_heads=4)
    with pytest.raises(ValueError, match="block_position_encoding"):
        GLMConfig(relative_encoding=True)
