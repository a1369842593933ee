"""What generation itself guarantees is tested in tests/models/test_generation.py; here: what PPO builds on."""

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from keju.rl.rollout import Sampler

EOS, PAD = 2, 3
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, PAD]]


class Tokenizer:
    eos_token_id, pad_token_id = EOS, PAD


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data.mul_(20)  # no near-ties
    return model


def sampler(**changes) -> Sampler:
    return Sampler(**{"tokenizer": Tokenizer(), "num_responses": 3, "max_new_tokens": 6, **changes})


def test_every_prompt_gets_its_responses_in_order(model):
    rollouts = sampler().sample(model, PROMPTS, seed=0)
    assert [list(rollout.prompt) for rollout in rollouts] == PROMPTS
    for rollout in rollouts:
        assert len(rollout.responses) == 3
        for response in rollout.responses:
            assert response.finished == (response.ids[-1] == EOS)
            assert EOS not in response.ids[:-1]
            assert response.finished or len(response.ids) == 6


def test_sampling_frequencies_follow_the_temperature(model):
    """What is sampled is what is scored: softmax(logits / temperature), nothing truncated or penalised."""
    model.generation_config = GenerationConfig(repetition_penalty=9.0, top_k=1, suppress_tokens=[4, 5])
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([[5, 6]])).logits[0, -1] / 0.7, dim=-1)
    once = sampler(num_responses=4000, max_new_tokens=1, temperature=0.7, batch_size=4000)
    draws = once.sample(model, [[5, 6]], seed=0)[0].responses
    counts = torch.bincount(torch.tensor([response.ids[0] for response in draws]), minlength=20)
    assert expected.max() > 3 * expected.mean()
    torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_wrong_settings_name_the_flag():
    with pytest.raises(ValueError, match="^temperature: .*got 0"):
        sampler(temperature=0)
    with pytest.raises(ValueError, match="^num_responses: .*got 0"):
        sampler(num_responses=0)
