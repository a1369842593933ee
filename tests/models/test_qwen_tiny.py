"""Tiny random Qwen models against themselves: trees, dropout, initial weights, errors; nothing from ../shared."""

from __future__ import annotations

import pytest
import torch

from keju.models import attention
from keju.models.backbone import tree_hidden_states, tree_logprobs
from keju.models.qwen import LORA_TARGETS, QWenConfig, QWenForCausalLM
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

IMPLEMENTATIONS = ["eager", "sdpa", "keju"]


def tiny_model(implementation: str = attention.NAME, seed: int = 0, **overrides) -> QWenForCausalLM:
    sizes = dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, kv_channels=8, ffn_hidden_size=96, seq_length=32)
    ids = dict(bos_token_id=9, eos_token_id=9)
    torch.manual_seed(seed)
    config = QWenConfig(**{**sizes, **ids, "initializer_range": 0.2, "embd_pdrop": 0.0, **overrides})
    config._attn_implementation = implementation
    return QWenForCausalLM(config).float().eval()


ANSWERS = [[20, 21, 9], [30, 9], [20, 40, 41, 42, 9]]


def tree_and_rows(prompt: list[int]) -> tuple[PackedBatch, list[tuple[list[int], int]]]:
    trees = [Segment(prompt, branches=[Segment(ids, True) for ids in ANSWERS]), Segment([1, 50, 51], True)]
    return PackedBatch.from_trees(trees), [*((prompt + ids, len(prompt)) for ids in ANSWERS), ([1, 50, 51], 1)]


def row_logprobs(model, rows) -> torch.Tensor:
    logprobs = []
    for row, start in rows:
        ids = torch.tensor([row])
        logits = model(ids).logits[0, :-1]
        logprobs.append(logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[start - 1 :, 0])
    return torch.cat(logprobs)


@pytest.mark.parametrize(
    ("prompt", "training", "options"),
    [
        (5, False, {"use_dynamic_ntk": True, "use_logn_attn": True}),
        (40, False, {"use_dynamic_ntk": False, "use_logn_attn": True}),  # LogN is by position
        (40, True, {"use_dynamic_ntk": True, "use_logn_attn": True}),
    ],
)
def test_trees_equal_rows(prompt, training, options):
    """Losses and gradients."""
    model = tiny_model(**options).train(training)
    batch, rows = tree_and_rows(list(range(10, 10 + prompt)))
    ours = tree_logprobs(model, batch).logprobs
    expected = row_logprobs(model, rows)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)
    gradients = [torch.autograd.grad(logprobs.sum(), list(model.parameters())) for logprobs in (ours, expected)]
    for (name, _), a, b in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_trees_that_would_need_an_ntk_factor_are_refused():
    model = tiny_model(use_dynamic_ntk=True)
    batch, _ = tree_and_rows(list(range(10, 37)))
    tree_hidden_states(model, batch)  # 27 + 5 positions
    batch, _ = tree_and_rows(list(range(10, 38)))
    with pytest.raises(ValueError, match="^33 positions exceed seq_length=32: set use_dynamic_ntk to false [^\n]*$"):
        tree_hidden_states(model, batch)
    tree_hidden_states(model.train(), batch)


def test_an_end_token_that_is_also_the_pad_is_trained():
    model = tiny_model(pad_token_id=9)
    ids = torch.tensor([[3, 9, 9]])
    loss = model(ids, labels=torch.tensor([[-100, -100, 9]])).loss
    assert loss > 0
    loss.backward()
    assert model.transformer.wte.weight.grad[9].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_half_precision(implementation):
    model = tiny_model(implementation, use_dynamic_ntk=True, use_logn_attn=True, initializer_range=0.05)
    ids, mask = torch.randint(3, 97, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[0, :30] = 0
    expected = model(ids, attention_mask=mask).logits
    logits = model.to(torch.bfloat16)(ids, attention_mask=mask).logits
    assert logits.dtype is torch.bfloat16
    torch.testing.assert_close(logits[mask.bool()].float(), expected[mask.bool()], atol=0.05, rtol=0.05)


def test_dropout_acts_where_the_config_says():
    ids = torch.arange(10)[None]
    for name in ("embd_pdrop", "attn_pdrop"):
        for implementation in IMPLEMENTATIONS:
            model = tiny_model(implementation, **{name: 0.5}).train()
            assert not torch.equal(model(ids).logits, model(ids).logits), name
            model.eval()
            assert torch.equal(model(ids).logits, model(ids).logits), name


def test_initial_weights():
    model = tiny_model(n_embd=64, kv_channels=16, n_layer=8, initializer_range=0.5)
    block = model.transformer.h[3]
    assert block.attn.c_attn.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert block.attn.c_proj.weight.std().item() == pytest.approx(0.5 / 4, rel=0.1)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.5 / 4, rel=0.1)


def test_biases_are_where_the_config_says():
    for no_bias in (True, False):
        names = {name.split(".", 3)[-1] for name, _ in tiny_model(no_bias=no_bias).named_parameters() if "bias" in name}
        others = {"attn.c_proj.bias", "mlp.w1.bias", "mlp.w2.bias", "mlp.c_proj.bias"}
        assert names == {"attn.c_attn.bias"} | (set() if no_bias else others)


def test_errors_are_one_line():
    model = tiny_model()
    with pytest.raises(ValueError, match=r"^input_ids must be \[batch, time\], not \[1, 1, 4\]$"):
        model(torch.zeros(1, 1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="^give either input_ids or inputs_embeds$"):
        model()
    with pytest.raises(ValueError, match=r"^n_embd 30 is not kv_channels 8 \* n_head 4$"):
        tiny_model(n_embd=30)
    with pytest.raises(ValueError, match="^padded_vocab_size 128 differs from vocab_size 97$"):
        tiny_model(padded_vocab_size=128)
    with pytest.raises(ValueError, match="^rotary_pct 0.5 is not supported"):
        tiny_model(rotary_pct=0.5)


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
