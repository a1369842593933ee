"""Tiny random Baichuan models against themselves: trees, the masks of ALiBi, NormHead; nothing from ../shared."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import DynamicCache

from keju.kernels.column_mask import ColumnMask
from keju.models import attention
from keju.models.backbone import tree_hidden_states, tree_logprobs
from keju.models.baichuan import LORA_TARGETS, BaichuanConfig, BaichuanForCausalLM, NormHead
from keju.trees.column_mask import dense_mask
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]


def tiny_model(implementation: str = attention.NAME, seed: int = 0, **overrides) -> BaichuanForCausalLM:
    sizes = dict(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6)
    torch.manual_seed(seed)
    config = BaichuanConfig(**{**sizes, "initializer_range": 0.2, **overrides})
    config._attn_implementation = implementation
    return BaichuanForCausalLM(config).float().eval()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_alibi_with_a_mask_of_four_dimensions(implementation):
    model = tiny_model(implementation)
    ids = torch.randint(3, 97, (1, 9))
    expected = model(ids).logits
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(model(ids, attention_mask=visible).logits, expected)
    added = torch.zeros(1, 1, 9, 9).masked_fill(~visible, torch.finfo(torch.float32).min)
    torch.testing.assert_close(model(ids, attention_mask=added).logits, expected)
    cache = model(ids[:, :5], use_cache=True).past_key_values
    rest = model(ids[:, 5:], attention_mask=visible[:, :, 5:], past_key_values=cache).logits
    torch.testing.assert_close(rest, expected[:, 5:])


TREES = [
    Segment([1, 10, 11, 12, 13], branches=[Segment(ids, True) for ids in ([20, 21, 2], [30, 2], [20, 40, 41, 42, 2])]),
    Segment([1, 50, 51], True),
]
ROWS = [([1, 10, 11, 12, 13, 20, 21, 2], 5), ([1, 10, 11, 12, 13, 30, 2], 5)]
ROWS += [([1, 10, 11, 12, 13, 20, 40, 41, 42, 2], 5), ([1, 50, 51], 1)]


def row_logprobs(model) -> torch.Tensor:
    logprobs = []
    for row, start in ROWS:
        ids = torch.tensor([row])
        row_logits = model(ids).logits[0, :-1]
        logprobs.append(row_logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[start - 1 :, 0])
    return torch.cat(logprobs)


@pytest.mark.parametrize("positions", [None, 64])
@pytest.mark.parametrize("z_loss_weight", [None, 0])
def test_trees_equal_rows(positions, z_loss_weight):
    """Losses and gradients, rotary and ALiBi, the plain head and the NormHead."""
    model = tiny_model(max_position_embeddings=positions, z_loss_weight=z_loss_weight)
    ours = tree_logprobs(model, PackedBatch.from_trees(TREES)).logprobs
    expected = row_logprobs(model)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)
    gradients = [torch.autograd.grad(logprobs.sum(), list(model.parameters())) for logprobs in (ours, expected)]
    for (name, _), a, b in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_trees_equal_a_dense_mask_with_positions():
    """The same tree as an ordinary 4-D mask: what attention does without the column mask, ALiBi included."""
    batch = PackedBatch.from_trees(TREES)
    model = tiny_model()
    visible = dense_mask(batch.visible_from, batch.visible_until)[None, None]
    dense = model.model(batch.input_ids, attention_mask=visible, position_ids=batch.position_ids).last_hidden_state
    torch.testing.assert_close(dense[0], tree_hidden_states(model, batch), rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_alibi_branches_continue_a_cached_prompt():
    """Past keys end where the first new position begins, and new keys stand where their positions say."""
    model = tiny_model("sdpa")
    batch = PackedBatch.from_trees(TREES[:1])
    expected = tree_hidden_states(tiny_model(), batch)[5:]
    cache = model.model(batch.input_ids[:, :5], use_cache=True).past_key_values
    visible = dense_mask(batch.visible_from, batch.visible_until)[None, None, 5:]
    rest = model.model(
        batch.input_ids[:, 5:], attention_mask=visible, position_ids=batch.position_ids[:, 5:], past_key_values=cache
    )
    torch.testing.assert_close(rest.last_hidden_state[0], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("weight", [0, 0.0, 1e-4])
def test_norm_head(weight, tmp_path):
    model = tiny_model(z_loss_weight=weight)
    ids = torch.randint(3, 97, (2, 7))
    hidden = model.model(ids).last_hidden_state
    rows = model.lm_head.weight
    expected = hidden @ (rows / rows.square().sum(1, keepdim=True).sqrt()).T
    torch.testing.assert_close(model(ids).logits, expected)
    torch.testing.assert_close(hidden @ model.lm_head.effective_weight().T, expected)
    assert not torch.allclose(model(ids).logits, hidden @ rows.T)

    before = rows.detach().clone()
    model.save_pretrained(tmp_path)
    again = BaichuanForCausalLM.from_pretrained(tmp_path)
    assert type(again.lm_head) is NormHead
    assert again.config.z_loss_weight == weight
    assert torch.equal(again.lm_head.weight, before), "the stored weight is not the normalised one"
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_the_length_of_a_row_of_the_norm_head_has_no_gradient():
    model = tiny_model(z_loss_weight=0)
    tree_logprobs(model, PackedBatch.from_trees(TREES)).logprobs.sum().backward()
    gradient = model.lm_head.weight.grad
    assert gradient.abs().max() > 0
    assert (gradient * model.lm_head.weight).sum(1).abs().max() < 1e-4


def test_norm_head_survives_resizing():
    model = tiny_model(z_loss_weight=0)
    ids = torch.randint(3, 97, (1, 5))
    before = model(ids).logits
    model.resize_token_embeddings(120)
    assert type(model.get_output_embeddings()) is NormHead
    after = model(ids).logits
    assert after.shape[-1] == 120
    torch.testing.assert_close(after[..., :97], before)
    assert type(tiny_model().lm_head) is torch.nn.Linear


def test_a_loss_term_that_is_not_computed_is_said(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        BaichuanConfig(z_loss_weight=0)
        assert not caplog.records
        BaichuanConfig(z_loss_weight=0.1)
    finally:
        logger.removeHandler(caplog.handler)
    assert "z_loss_weight=0.1 selects the NormHead and has no effect on the loss" in caplog.text


def test_an_end_token_that_is_also_the_pad_is_trained():
    model = tiny_model(pad_token_id=9, eos_token_id=[2, 9])
    assert model(torch.tensor([[3, 4, 9]]), labels=torch.tensor([[-100, -100, 9]])).loss > 0
    for pad, trained in ((9, True), (5, False)):
        model = tiny_model(pad_token_id=pad, eos_token_id=9)
        ids = torch.tensor([[3, pad, 4]])
        model(ids, labels=ids).loss.backward()
        assert bool(model.model.embed_tokens.weight.grad[pad].any()) is trained


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("positions", [None, 64])
@torch.no_grad()
def test_half_precision(implementation, positions):
    exact = tiny_model(implementation, max_position_embeddings=positions, initializer_range=0.05)
    ids, mask = torch.randint(3, 97, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    expected = exact(ids, attention_mask=mask).logits
    logits = exact.to(torch.bfloat16)(ids, attention_mask=mask).logits
    assert logits.dtype is torch.bfloat16
    torch.testing.assert_close(logits[mask.bool()].float(), expected[mask.bool()], atol=0.05, rtol=0.05)


@torch.no_grad()
def test_trees_in_half_precision():
    batch = PackedBatch.from_trees(TREES)
    model = tiny_model(initializer_range=0.05)
    expected = tree_hidden_states(model, batch)
    ours = tree_hidden_states(model.to(torch.bfloat16), batch)
    torch.testing.assert_close(ours.float(), expected, atol=0.1, rtol=0.05)


def test_a_column_mask_is_enough_for_alibi():
    """Positions are counted where none are given."""
    model = tiny_model()
    ids = torch.randint(3, 97, (1, 6))
    mask = ColumnMask(torch.arange(6), torch.full((6,), 6))
    torch.testing.assert_close(model(ids, column_mask=mask).logits, model(ids).logits)


def test_errors_are_one_line():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"^input_ids must be \[batch, time\], not \[1, 1, 4\]$"):
        model(torch.zeros(1, 1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="^give either input_ids or inputs_embeds$"):
        model()
    with pytest.raises(ValueError, match="^hidden_size 30 is not a multiple of num_attention_heads 4$"):
        tiny_model(hidden_size=30, num_attention_heads=4)


def test_lora():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=list(LORA_TARGETS), task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), lora)
    ids = torch.arange(10, 20)[None]
    adapted = model(ids, labels=ids)
    adapted.loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert len(trained) == 2 * 2 * len(LORA_TARGETS)  # layers, A and B
    assert all("lora_" in name for name in trained)
    merged = model.eval().merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, adapted.logits, atol=1e-5, rtol=1e-4)


def test_a_cache_that_is_given_is_filled():
    model = tiny_model()
    ids = torch.randint(3, 97, (2, 6))
    cache = DynamicCache()
    model(ids, past_key_values=cache)
    assert cache.get_seq_length() == 6
    assert model(ids, use_cache=False).past_key_values is None
