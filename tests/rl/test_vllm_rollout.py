"""Rollouts by vLLM: its absence, and what we ask of it, against an engine with its interface around a tiny model."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import build_llama, build_pangu

from keju.models.generation import Response
from keju.rl.mismatch import rollout_mismatch
from keju.rl.rollout import Rollout
from keju.rl.vllm_rollout import VllmSampler, named_weights

EOS, PAD = 2, 3


class Engine:
    """The parts of vllm.LLM that are used: it holds a model of its own, and samples with it token by token."""

    def __init__(self, model: str, **settings) -> None:
        self.settings, self.folder, self.resets = settings, model, 0
        self.model = build_llama(seed=99).eval()
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=SimpleNamespace(model=self)))
        )

    def load_weights(self, weights) -> None:
        own = dict(self.model.named_parameters())
        loaded = set()
        with torch.no_grad():
            for name, tensor in weights:
                own[name].copy_(tensor)
                loaded.add(name)
        assert loaded == set(own)

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    @torch.no_grad()
    def generate(self, prompts, settings, use_tqdm):
        return [
            SimpleNamespace(outputs=[self.one(prompt["prompt_token_ids"], own, k) for k in range(own.n)])
            for prompt, own in zip(prompts, settings, strict=True)
        ]

    def one(self, prompt, settings, number):
        generator = torch.Generator().manual_seed(settings.seed + 7919 * number)
        ids, logprobs = [], []
        while len(ids) < settings.max_tokens:
            row = (self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1] / settings.temperature).log_softmax(-1)
            ids.append(int(torch.multinomial(row.exp(), 1, generator=generator)))
            logprobs.append({ids[-1]: SimpleNamespace(logprob=float(row[ids[-1]]))})
            if ids[-1] in settings.stop_token_ids:
                break
        return SimpleNamespace(token_ids=ids, logprobs=logprobs)


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)


def sampler() -> VllmSampler:
    tokenizer = SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD)
    return VllmSampler(tokenizer, num_responses=3, max_new_tokens=6, temperature=0.8, folder="runs/sft")


def test_its_absence_is_one_line_that_names_the_flag(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="^rollout: vLLM is not installed"):
        sampler()


def test_nothing_is_unpickled_or_fetched(vllm):
    made = sampler()
    assert made.engine.settings["trust_remote_code"] is False and made.engine.folder == "runs/sft"


def test_the_newest_weights_sample_and_log_probs_agree_with_the_trainer(vllm, trainer_of):
    trainer = trainer_of()
    trainer.sampler = sampler()
    trainer.temperature = trainer.sampler.temperature
    for step in (1, 2):
        with torch.no_grad():
            for parameter in trainer.actor.parameters():
                parameter.add_(0.01)
        rollouts = trainer.sample(trainer.prompts, seed=step)
        assert trainer.sampler.engine.resets == step
        scored = trainer.score(rollouts)
        responses = [response for rollout in rollouts for response in rollout.responses]
        assert {response.finished for response in responses} <= {True, False}
        figures = rollout_mismatch(responses, scored.logprobs)
        assert figures["rollout_logprob_gap_max"] < 1e-4 and abs(figures["rollout_kl"]) < 1e-6
    assert "rollout_logprob_gap" in trainer.shaping.experience(scored).metrics()
    assert trainer.sample(trainer.prompts, seed=5) == trainer.sample(trainer.prompts, seed=5)
    assert trainer.sample(trainer.prompts, seed=5) != trainer.sample(trainer.prompts, seed=6)


def test_weights_that_lag_behind_show(vllm, trainer_of):
    trainer = trainer_of()
    trainer.sampler = sampler()
    trainer.temperature = trainer.sampler.temperature
    rollouts = trainer.sample(trainer.prompts, seed=0)
    with torch.no_grad():
        trainer.actor.lm_head.weight.mul_(1.5)
    scored = trainer.score(rollouts)
    responses = [response for rollout in rollouts for response in rollout.responses]
    figures = rollout_mismatch(responses, scored.logprobs)
    assert figures["rollout_logprob_gap"] > 0.05 and figures["rollout_kl"] > 1e-3


def test_mismatch_by_hand():
    responses = [SimpleNamespace(logprobs=(-1.0, -2.0)), SimpleNamespace(logprobs=(-0.5,))]
    found = rollout_mismatch(responses, torch.tensor([[-1.5, -2.0, 9.0], [-0.5, 9.0, 9.0]]))
    assert found["rollout_logprob_gap"] == pytest.approx(0.5 / 3) and found["rollout_logprob_gap_max"] == 0.5
    # sampler over trainer: d = 0.5, 0, 0; e^-d - 1 + d
    assert found["rollout_kl"] == pytest.approx((0.60653066 - 1 + 0.5) / 3)
    assert rollout_mismatch([SimpleNamespace(logprobs=None)], torch.zeros(1, 1)) == {}


def test_adapters_are_merged_for_the_push_alone():
    model = build_llama(seed=0)
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    pushed = {name: tensor.clone() for name, tensor in named_weights(adapted)}
    assert pushed.keys() == start.keys()
    changed = {name for name in start if not torch.allclose(start[name], pushed[name])}
    assert changed == {name for name in start if "q_proj" in name}
    ids = torch.tensor([[1, 5, 6, 7]])
    plain = build_llama(seed=0)
    plain.load_state_dict(pushed)
    torch.testing.assert_close(plain(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)


def test_our_own_families_are_refused(vllm):
    with pytest.raises(ValueError, match="^rollout: vLLM does not know"):
        sampler().sample(build_pangu(), [[1, 5]], seed=0)


def test_the_old_log_probs_stay_the_trainers(vllm, trainer_of):
    """They come from our own pass, whatever the sampler says."""
    trainer = trainer_of()
    trainer.sampler = sampler()
    rollouts = trainer.sample(trainer.prompts, seed=0)
    first = trainer.score(rollouts)
    stripped = [
        Rollout(rollout.prompt, tuple(Response(response.ids, response.finished) for response in rollout.responses))
        for rollout in rollouts
    ]
    assert torch.equal(first.logprobs, trainer.score(stripped).logprobs)
