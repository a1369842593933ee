"""Generation in batches is generation one by one; order, ends and random states are kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from keju.models.generation import generate_responses

EOS, PAD = 2, 0
TOKENIZER = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 31, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def greedy(model, prompt: list[int], steps: int) -> list[int]:
    """Without cache, padding or generate()."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def test_batches_equal_one_by_one_in_input_order(model):
    prompts = prompts_of(3, 11, 1, 7, 5)
    batches = []
    responses = generate_responses(
        model, TOKENIZER, prompts, max_new_tokens=12, temperature=0, batch_size=3,
        on_batch=lambda rows, tokens: batches.append((rows, tokens)),
    )  # fmt: skip
    assert [list(only.ids) for (only,) in responses] == [greedy(model, prompt, 12) for prompt in prompts]
    assert [rows for rows, _ in batches] == [3, 2]
    assert sum(tokens for _, tokens in batches) == sum(len(only.ids) for (only,) in responses)


def test_a_prompt_that_holds_the_pad_id_is_not_masked(model):
    prompts = [[PAD, PAD, 5, PAD], *prompts_of(9)]
    responses = generate_responses(model, TOKENIZER, prompts, max_new_tokens=6, temperature=0)
    assert [list(only.ids) for (only,) in responses] == [greedy(model, prompt, 6) for prompt in prompts]


def test_samples_repeat_with_the_seed_and_leave_the_random_state_alone(model):
    prompts = prompts_of(4, 6, 5)
    before = torch.get_rng_state()
    settings = dict(max_new_tokens=8, num_responses=4, batch_size=8)
    first = generate_responses(model, TOKENIZER, prompts, seed=7, **settings)
    again = generate_responses(model, TOKENIZER, prompts, seed=7, **settings)
    other = generate_responses(model, TOKENIZER, prompts, seed=8, **settings)
    assert torch.equal(before, torch.get_rng_state())
    assert first == again
    assert first != other
    assert [len(group) for group in first] == [4, 4, 4]
    assert len({response.ids for group in first for response in group}) > 3


def test_a_sample_does_not_depend_on_its_company(model):
    """Neither on the size of the batch, nor on who else is in it, nor on when others end."""
    prompts = prompts_of(4, 6, 5, 1, 9)
    settings = dict(max_new_tokens=12, num_responses=3, seed=7, temperature=0.9)
    expected = generate_responses(model, TOKENIZER, prompts, batch_size=64, **settings)
    assert {response.finished for group in expected for response in group} == {True, False}
    for batch_size in (1, 6, 9):
        assert generate_responses(model, TOKENIZER, prompts, batch_size=batch_size, **settings) == expected
    # the number of a prompt is part of its seed: the first prompts have the samples that they have in company
    assert generate_responses(model, TOKENIZER, prompts[:2], **settings) == expected[:2]


def test_top_k_one_samples_the_likeliest(model):
    prompts = prompts_of(4, 6)
    sampled = generate_responses(model, TOKENIZER, prompts, max_new_tokens=6, top_k=1)
    assert sampled == generate_responses(model, TOKENIZER, prompts, max_new_tokens=6, temperature=0)


def test_the_checkpoints_own_generation_settings_do_not_leak_in(model):
    prompts = prompts_of(4, 6)
    expected = generate_responses(model, TOKENIZER, prompts, max_new_tokens=8, seed=3)
    own = model.generation_config
    own.repetition_penalty, own.top_k = 5.0, 1
    try:
        assert generate_responses(model, TOKENIZER, prompts, max_new_tokens=8, seed=3) == expected
        assert model.generation_config is own
    finally:
        own.repetition_penalty, own.top_k = None, None


def test_a_response_ends_at_the_end_token(model):
    # A head that always prefers the end token.
    biased = LlamaForCausalLM(model.config).eval()
    biased.model.norm.weight.data.zero_()
    biased.lm_head = torch.nn.Linear(32, 31)
    biased.lm_head.weight.data.zero_()
    biased.lm_head.bias.data.zero_()[EOS] = 5.0
    ((response,),) = generate_responses(biased, TOKENIZER, prompts_of(4), max_new_tokens=8, temperature=0)
    assert response.ids == (EOS,) and response.finished


def test_training_mode_is_restored(model):
    model.train()
    generate_responses(model, TOKENIZER, prompts_of(4), max_new_tokens=2)
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(max_new_tokens=0), "^max_new_tokens: must be at least 1, got 0"),
        (dict(max_new_tokens=60), "^max_new_tokens: 60 tokens after a prompt of 6 exceed the 64 positions"),
        (dict(max_new_tokens=4, num_responses=2, temperature=0), "^num_return_sequences: 2"),
        (dict(max_new_tokens=4, temperature=-1, do_sample=True), "^temperature: "),
        (dict(max_new_tokens=4, top_p=0), "^top_p: "),
    ],
)
def test_wrong_settings_are_named(model, settings, said):
    with pytest.raises(ValueError, match=said):
        generate_responses(model, TOKENIZER, prompts_of(6), **settings)


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(ValueError, match="empty prompt"):
        generate_responses(model, TOKENIZER, [[]], max_new_tokens=4)
