"""The GRPO stage: TRL's trainer with our prompts, samples and reward model."""

import itertools
import json
import random
import signal
import sys

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from safetensors.torch import load_file
from tiny_models import BUILDERS, DROPOUT, GMASK, SOP, build_llama, build_pangu, build_scalar_model, row_inputs
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from keju import train_grpo
from keju.models.backbone import tree_logprobs
from keju.models.loading import load_scalar_model
from keju.models.padded_rows import position_by_mask
from keju.records.writing import write_jsonl
from keju.training.checkpoints import damage
from keju.training.launch import run_guarded
from keju.training.stopping import SIGNALS, handle_signals
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpo")
    tokenizer = build_char_tokenizer()
    reward = build_scalar_model(build_llama(len(tokenizer), seed=1), seed=2)
    for name, model in (
        ("llama", build_llama(len(tokenizer))),
        ("pangu", build_pangu(len(tokenizer), bos_token_id=1, eos_token_id=2, **DROPOUT["pangu"])),
        ("derived", BUILDERS["baichuan2-7B"](len(tokenizer))),
        ("reward", reward),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    other = build_char_tokenizer("另")
    build_scalar_model(build_llama(len(other))).save_pretrained(folder / "other")
    other.save_pretrained(folder / "other")
    rng = random.Random(0)
    rows = [
        {"prompt": "".join(rng.choices(CHARACTERS, k=rng.randint(2, 9))), "answers": [{"answer": "成", "score": 1}]}
        for _ in range(8)
    ]
    write_jsonl(folder / "prompts_train.jsonl", rows)
    write_jsonl(folder / "ranked_dev.jsonl", rows[:3])
    return folder


def run(monkeypatch, data, output, model="llama", **flags) -> int:
    flags = {
        "model_name_or_path": data / model,
        "reward_model_path": data / "reward",
        "data_dir": data,
        "output_dir": output,
        "max_steps": 3,
        "rollout_batch_size": 4,
        "num_responses": 3,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "token_budget": 64,
        **flags,
    }
    argv = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_grpo.py", *argv, "--use_cpu"])
    return run_guarded(train_grpo.main)


@pytest.mark.parametrize("model", ["llama", "pangu"])
def test_what_a_run_leaves_behind(monkeypatch, data, tmp_path, model):
    seen = []
    of_rollouts = train_grpo.Rewards.of_rollouts

    def watched(rewards, rollouts):
        scores = of_rollouts(rewards, rollouts)
        seen.append((rollouts, scores))
        return scores

    monkeypatch.setattr(train_grpo.Rewards, "of_rollouts", watched)
    assert run(monkeypatch, data, tmp_path / "run", model) == 0
    start, end = (load_file(folder / "model.safetensors") for folder in (data / model, tmp_path / "run"))
    assert any(not torch.equal(start[name], end[name]) for name in start)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the policy still is its own reference
    for name in ("loss", "curves"):
        assert (tmp_path / "run" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # TRL was given the scores of the reward model, of the very ids: four prompts with three responses each
    judge = load_scalar_model(str(data / "reward"))
    rollouts, scores = seen[1]
    assert [len(rollout.responses) for rollout in rollouts] == [3] * 4
    assert rows[0]["reward"] == pytest.approx(sum(scores) / 12, rel=1e-4)
    row = torch.tensor([[*rollouts[0].prompt, *rollouts[0].responses[1].ids]])
    with torch.no_grad():
        assert scores[1] == pytest.approx(judge(input_ids=row).logits.item(), rel=1e-3, abs=1e-4)


def test_the_seed_reaches_the_samples(monkeypatch, data, tmp_path):
    """Also where the order of prompts is the same for every seed: there is one batch of them."""
    rewards = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        assert run(monkeypatch, data, tmp_path / name, seed=seed, rollout_batch_size=8, max_steps=1) == 0
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rewards[name] = next(row["reward"] for row in rows if "reward" in row)
    assert rewards["one"] == rewards["again"] != rewards["two"]


def test_a_reward_that_is_not_finite_ends_the_run(monkeypatch, data, tmp_path, capsys):
    broken = load_scalar_model(str(data / "reward"))
    with torch.no_grad():
        broken.score.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "reward")
    build_char_tokenizer().save_pretrained(tmp_path / "reward")
    assert run(monkeypatch, data, tmp_path / "run", reward_model_path=tmp_path / "reward") == 1
    said = capsys.readouterr().err
    assert "reward is not finite at step 1 (records: " in said and "prompts_train.jsonl:" in said
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_every_prompt_is_answered_in_every_epoch(monkeypatch, data, tmp_path):
    """Eight prompts in batches of three: three steps, the last of which answers one for the second time."""
    asked = []
    sample = train_grpo.Sampler.sample

    def watched(sampler, policy, prompts, seed, numbers=None):
        asked.append([tuple(prompt) for prompt in prompts])
        return sample(sampler, policy, prompts, seed, numbers)

    monkeypatch.setattr(train_grpo.Sampler, "sample", watched)
    assert run(monkeypatch, data, tmp_path / "run", max_steps=-1, num_train_epochs=2, rollout_batch_size=3) == 0
    before, *steps, after = asked
    assert len(steps) == 6 and all(len(set(step)) == 3 for step in steps)
    for epoch in (steps[:3], steps[3:]):
        assert len({prompt for step in epoch for prompt in step}) == 8


def test_a_signal_saves_and_the_run_goes_on_in_another_pass(monkeypatch, data, tmp_path):
    """Two steps are a pass; the third one answers its prompts in the order of the second pass."""
    of_rollouts, calls = train_grpo.Rewards.of_rollouts, itertools.count()

    def stopped(rewards, rollouts):
        if next(calls) == 2:  # before, step 1, step 2
            signal.raise_signal(signal.SIGTERM)
        return of_rollouts(rewards, rollouts)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    assert run(monkeypatch, data, tmp_path / "whole") == 0
    try:
        handle_signals()
        with monkeypatch.context() as patch:
            patch.setattr(train_grpo.Rewards, "of_rollouts", stopped)
            assert run(patch, data, tmp_path / "run") == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert damage(checkpoint) is None and not (tmp_path / "run" / "summary.json").exists()
    assert not list(tmp_path.rglob("training_args.bin"))
    assert run(monkeypatch, data, tmp_path / "run", resume_from_checkpoint="auto") == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_samples_depend_on_the_seed_and_the_step(monkeypatch, data, tmp_path):
    seeds, sample = [], train_grpo.Sampler.sample

    def watched(sampler, policy, prompts, seed):
        seeds.append(seed)
        return sample(sampler, policy, prompts, seed)

    monkeypatch.setattr(train_grpo.Sampler, "sample", watched)
    for seed in (1, 2):
        assert run(monkeypatch, data, tmp_path / f"{seed}", seed=seed) == 0
    one, two = seeds[:5], seeds[5:]
    assert one[0] == one[-1] == 1 and two[0] == two[-1] == 2  # held-out prompts are answered alike, before and after
    assert len({*one, *two}) == 8


@pytest.mark.parametrize("family", sorted(set(BUILDERS) - {"baichuan2-7B"}))
def test_trl_has_our_log_probabilities(family):
    """Its fused head over padded rows against trees, prefix language models included."""
    model = BUILDERS[family]()
    position_by_mask(model)
    rows = [[7, 8, 9, GMASK, SOP, 20, 21, 22, 23, 2], [10, GMASK, SOP, 30, 31, 32, 33, 2]]
    batch = PackedBatch.from_trees([Segment(ids, trained=True) for ids in rows])
    with torch.no_grad():
        ours = tree_logprobs(model, batch).logprobs
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        inputs = row_inputs(model, rows, side="left", extra=1)
        del inputs["position_ids"]  # TRL gives none
        mask = inputs["attention_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        theirs = model(**inputs, labels=labels, fused_lm_head=True).log_probs
    predicted = (mask[:, :-1] * mask[:, 1:]).bool()
    torch.testing.assert_close(ours, theirs[predicted], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_responses": 1}, "--num_responses: must be at least 2, got 1"),
        ({"rollout_batch_size": 9}, "--rollout_batch_size 9: --train_filename prompts_train.jsonl has only 8 prompts"),
        ({"save_steps": 0}, "--save_steps: must be at least 1"),
        ({"model_name_or_path": "{data}/derived"}, "train_rlhf trains this model"),
        ({"reward_model_path": "{data}/other"}, "--reward_model_path"),
        ({"train_filename": "none.jsonl"}, "--train_filename"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(monkeypatch, data, tmp_path, capsys, flags, said):
    flags = {name: value.format(data=data) if isinstance(value, str) else value for name, value in flags.items()}
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
