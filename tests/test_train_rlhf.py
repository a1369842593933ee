"""The PPO stage from its command line: what it leaves behind, resuming, and how it refuses."""

import json
import random
import sys

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from safetensors.torch import load_file
from tiny_models import build_llama, build_pangu, build_scalar_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keju import train_rlhf
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.records.writing import write_jsonl
from keju.rl import training_loop
from keju.rl.ppo_trainer import PPOTrainer
from keju.training.adapters import add_lora
from keju.training.launch import run_guarded

FLAGS = {
    "max_steps": 4,
    "rollout_batch_size": 4,
    "num_responses": 2,
    "num_mini_batches": 2,
    "max_new_tokens": 8,
    "max_prompt_length": 30,
    "token_budget": 128,
    "max_eval_samples": 3,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An actor, a reward model of the same tokenizer, and ranked records."""
    folder = tmp_path_factory.mktemp("rlhf")
    tokenizer = build_char_tokenizer()
    actor = build_llama(vocab_size=len(tokenizer))
    actor.lm_head.weight.data[tokenizer.eos_token_id] *= 4  # so that some responses end
    for name, model in (("actor", actor), ("reward", build_scalar_model(build_llama(len(tokenizer), seed=1), seed=2))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    rows = [
        {
            "prompt": "".join(rng.choices(CHARACTERS, k=rng.randint(2, 12))),
            "answers": [{"answer": "".join(rng.choices(CHARACTERS, k=5)), "score": score} for score in (1, 0)],
        }
        for _ in range(12)
    ]
    write_jsonl(folder / "prompts_train.jsonl", rows)
    write_jsonl(folder / "ranked_dev.jsonl", rows[:4])
    write_jsonl(folder / "texts.jsonl", [{"text": row["prompt"] * 4} for row in rows])
    return folder


def run(monkeypatch, data, output, **flags) -> int:
    flags = {
        "model_name_or_path": data / "actor",
        "reward_model_path": data / "reward",
        "data_dir": data,
        "output_dir": output,
        **FLAGS,
        **flags,
    }
    argv = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_rlhf.py", *argv])
    return run_guarded(train_rlhf.main)


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def killed_and_resumed(monkeypatch, data, output, step: int, **flags) -> None:
    """A run that is interrupted in step `step` + 1, and then resumed to its end."""

    def killed(trainer, train_step=PPOTrainer.train_step):
        if trainer.step == step:
            raise KeyboardInterrupt
        return train_step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "train_step", killed)
        assert run(monkeypatch, data, output, **flags) == 130
    rows = rows_of(output / "metrics.jsonl")
    assert rows[-1]["step"] == step
    for name in ("metrics", "samples", "alarms"):  # a kill cuts a row anywhere, behind what looks like its end, too
        if (output / f"{name}.jsonl").is_file():
            with (output / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write('{"step": 9, "response": "\u2028{一}')
    assert run(monkeypatch, data, output, **flags, resume_from_checkpoint="auto") == 0


def test_what_a_run_leaves_behind(monkeypatch, data, tmp_path, capsys):
    output = tmp_path / "run"
    monkeypatch.setattr(training_loop, "SECONDS_BETWEEN_DRAWINGS", 0)
    assert run(monkeypatch, data, output) == 0
    assert "samples of step 2:" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.get_vocab() == build_char_tokenizer().get_vocab()
    actor = AutoModelForCausalLM.from_pretrained(output)
    critic = AutoModelForSequenceClassification.from_pretrained(output / "critic")
    for trained, start in ((actor, data / "actor"), (critic, data / "reward")):
        before = load_file(start / "model.safetensors")
        changed = [name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])]
        assert len(changed) > len(before) // 2

    rows = rows_of(output / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    expected = {
        "reward", "reward_std", "kl", "entropy", "clip_fraction", "approx_kl", "policy_loss", "value_loss",
        "response_length", "fraction_finished", "tokens_per_second", "loss", "learning_rate", "num_tokens",
    }  # fmt: skip
    assert all(expected <= row.keys() for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)  # the policy still is its own reference

    samples = rows_of(output / "samples.jsonl")
    assert len(samples) == 4 * 4 * 2
    assert sum(sample["length"] for sample in samples) == rows[-1]["num_tokens"]
    for row in rows:
        scores = [sample["score"] for sample in samples if sample["step"] == row["step"]]
        assert sum(scores) / len(scores) == pytest.approx(row["reward"], abs=1e-3)
    assert all("</s>" not in sample["response"] for sample in samples)

    summary = json.loads((output / "summary.json").read_text())
    assert {"reward_before", "reward_after", "kl", "tokens_per_second"} <= summary.keys()
    assert summary["evaluation_before"]["kl"] == pytest.approx(0, abs=1e-5) and summary["kl"] > 0
    for name in ("loss", "curves"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_goes_on_as_if_it_had_not_been(monkeypatch, data, tmp_path):
    flags = {"kl_target": 0.01, "kl_horizon": 100, "ema_decay": 0.9}
    assert run(monkeypatch, data, tmp_path / "straight", **flags) == 0
    killed_and_resumed(monkeypatch, data, tmp_path / "killed", 3, **flags)

    for name in ("", "critic", "ema"):
        straight, resumed = (load_file(tmp_path / run / name / "model.safetensors") for run in ("straight", "killed"))
        assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert rows_of(tmp_path / "straight" / "samples.jsonl") == rows_of(tmp_path / "killed" / "samples.jsonl")
    straight, resumed = (rows_of(tmp_path / run / "metrics.jsonl") for run in ("straight", "killed"))
    timing = {"elapsed", "tokens_per_second", "seconds_rollout", "seconds_scoring", "seconds_update"}
    for ours, other in zip(straight, resumed, strict=True):
        assert {key: ours[key] for key in ours.keys() - timing} == {key: other[key] for key in other.keys() - timing}
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("straight", "killed")]
    assert summaries[0]["reward_before"] == summaries[1]["reward_before"]


@pytest.mark.parametrize("ptx_filename", ["ranked_dev.jsonl", "texts.jsonl"])
def test_ptx_and_the_other_mode(monkeypatch, data, tmp_path, ptx_filename):
    flags = {"ppo_mode": "deepspeed_chat", "ptx_filename": ptx_filename, "max_steps": 2}
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 0
    rows = rows_of(tmp_path / "run" / "metrics.jsonl")
    assert all(row["ptx_loss"] > 0 for row in rows)
    arguments = json.loads((tmp_path / "run" / "args.json").read_text())["arguments"]
    assert (arguments["whiten_advantages"], arguments["normalize_reward"], arguments["ptx_coef"]) == (
        False,
        False,
        27.8,
    )


def test_given_flags_win_over_those_of_the_mode(monkeypatch, data, tmp_path):
    flags = {"whiten_advantages": "false", "missing_eos_penalty": 0.5, "max_steps": 1}
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 0
    arguments = json.loads((tmp_path / "run" / "args.json").read_text())["arguments"]
    chosen = arguments["whiten_advantages"], arguments["normalize_reward"], arguments["missing_eos_penalty"]
    assert chosen == (False, True, 0.5)


def test_responses_that_never_end_stop_the_run(monkeypatch, data, tmp_path, capsys):
    flags = {"max_new_tokens": 1, "temperature": 0.01}  # greedy: the one token is not the end
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 1
    assert "max_new_tokens" in capsys.readouterr().err
    assert run(monkeypatch, data, tmp_path / "other", **flags, allow_unfinished="true") == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"max_prompt_length": 2}, "--max_prompt_length: 2: all 12 prompts are longer"),
        ({"token_budget": 12}, "--token_budget: 12 does not hold"),
        ({"num_mini_batches": 5}, "--num_mini_batches 5 exceeds --rollout_batch_size 4"),
        ({"ppo_mode": "trl"}, "--ppo_mode"),
        ({"kl_coeff": 0.2}, "--kl_coef"),
        ({"temperature": 0}, "--temperature: must be above 0"),
        ({"train_filename": "none.jsonl"}, "--train_filename"),
        ({"max_new_tokens": 300}, "--max_new_tokens 300"),
        ({"reward_model_path": "{data}/actor"}, "--reward_model_path"),
        ({"rollout": "vllm"}, "--rollout: vLLM is not installed"),
        ({"kl_in_loss": "true"}, "--kl_in_loss"),
        ({"alarm_window": 1}, "--alarm_window: must be at least 2 steps, got 1"),
        ({"enable_joint_optimization": "true"}, "--ranked_filename"),
        (
            {
                "enable_joint_optimization": "true",
                "ranked_filename": "ranked_dev.jsonl",
                "critic_model_path": "{data}/reward",
            },
            "--critic_model_path",
        ),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(monkeypatch, data, tmp_path, capsys, flags, said):
    flags = {name: value.format(data=data) if isinstance(value, str) else value for name, value in flags.items()}
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("more", ["另外", "\n思意的”“释解。：语成"])  # other tokens; the same ones under other ids
def test_a_reward_model_of_another_vocabulary_reads_the_text(monkeypatch, data, tmp_path, capsys, more):
    """The scores of samples.jsonl are those that it gives to prompt and response as texts."""
    own = build_char_tokenizer(more)
    model = build_scalar_model(build_pangu(vocab_size=len(own)), seed=3)
    model.save_pretrained(tmp_path / "reward")
    own.save_pretrained(tmp_path / "reward")
    assert run(monkeypatch, data, tmp_path / "run", reward_model_path=tmp_path / "reward", max_steps=2) == 0
    assert "another tokenizer than the actor's" in capsys.readouterr().out
    samples = rows_of(tmp_path / "run" / "samples.jsonl")
    assert {sample["finished"] for sample in samples} == {True, False}
    for sample in samples:
        text = sample["response"]
        if any(token in text for token in ("<unk>", "<s>", "<pad>")):
            continue
        ids = own.encode(sample["prompt"]) + own.encode(text, add_special_tokens=False) + [2] * sample["finished"]
        with torch.no_grad():
            score = model.score(model.transformer(torch.tensor([ids])).last_hidden_state)[0, -1, 0]
        assert sample["score"] == pytest.approx(float(score), abs=1e-3)


def counting_model(folder, tokenizer, worth: dict[str, float]) -> None:
    """A reward model made by hand: its score rises with the mean worth of the characters so far.

    One attention layer of equal weights averages a number that the embedding has of each character; the head reads it.
    """
    model = build_scalar_model(build_llama(vocab_size=len(tokenizer), num_hidden_layers=1), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        embedding, layer = model.model.embed_tokens.weight, model.model.layers[0]
        embedding[:, 0] = 1.0
        for character, number in worth.items():
            embedding[tokenizer.convert_tokens_to_ids(character), 1] = number
        for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
            norm.weight.fill_(1.0)
        layer.self_attn.v_proj.weight[1, 1] = 0.05  # q and k stay zero: every token before looks the same
        layer.self_attn.o_proj.weight[2, 1] = 1.0  # small beside the 1 above, so that the last norm changes it little
        model.score.weight[0, 2] = 2.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def flawed(data):
    """A reward model that loves one word, and a judge that knows good characters: the word is none."""
    tokenizer = build_char_tokenizer()
    good = dict.fromkeys(CHARACTERS[20:60], 0.2)
    counting_model(data / "flawed", tokenizer, {**dict.fromkeys(good, 0.05), CHARACTERS[3]: 1.0})
    counting_model(data / "judge", tokenizer, good)
    return {
        "reward_model_path": data / "flawed",
        "judge_model_path": data / "judge",
        "max_steps": 60,
        "num_responses": 8,
        "actor_learning_rate": 2e-3,
        "kl_coef": 0.05,
        "missing_eos_penalty": 0.0,
        "alarm_window": 4,
        "alarm_kl": 100,
        "lr_scheduler_type": "constant",
        "save_steps": 5,
        "allow_unfinished": "true",
    }


def test_a_reward_model_with_a_flaw_raises_the_alarm(monkeypatch, data, tmp_path, flawed, capsys):
    assert run(monkeypatch, data, tmp_path / "run", **flawed) == 0
    rows, alarms = rows_of(tmp_path / "run" / "metrics.jsonl"), rows_of(tmp_path / "run" / "alarms.jsonl")
    assert "reward_is_fooled" in {alarm["name"] for alarm in alarms}
    assert rows[-1]["reward"] > 2 * rows[0]["reward"] and rows[-1]["judge"] < rows[0]["judge"]
    assert rows[-1]["step"] == 60 and {alarm["action"] for alarm in alarms} == {"warn"}
    assert "alarm at step" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_alarms"] == len(alarms)
    assert summary["evaluation_after"]["judge"] < summary["evaluation_before"]["judge"]
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_alarm_may_stop_the_run(monkeypatch, data, tmp_path, flawed):
    assert run(monkeypatch, data, tmp_path / "run", **flawed, on_alarm="stop") == 0
    rows, alarms = rows_of(tmp_path / "run" / "metrics.jsonl"), rows_of(tmp_path / "run" / "alarms.jsonl")
    assert rows[-1]["step"] == alarms[-1]["step"] < 60
    assert {alarm["action"] for alarm in alarms} == {"stop"}
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_an_alarm_may_take_a_step_back(monkeypatch, data, tmp_path, flawed):
    """Weights of a checkpoint from before, twice the KL coefficient; a run that is killed then goes on the same way."""
    flags = {**flawed, "alarm_kl": 0.05, "max_steps": 16, "save_steps": 3, "on_alarm": "rollback", "alarm_window": 2}
    steps_back = []
    load = training_loop.load_checkpoint

    def noted(trainer, folder, made_with):
        load(trainer, folder, made_with)
        steps_back.append((trainer.step, folder.name))

    monkeypatch.setattr(training_loop, "load_checkpoint", noted)
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 0
    alarms, rows = rows_of(tmp_path / "run" / "alarms.jsonl"), rows_of(tmp_path / "run" / "metrics.jsonl")
    back = sorted({alarm["step"] for alarm in alarms if alarm["action"] == "rollback"})
    assert len(back) == len(steps_back) == 3 and [alarm["action"] for alarm in alarms][-1] == "stop"
    assert all(came_from <= at - 2 for at, (came_from, _) in zip(back, steps_back, strict=True))
    assert [row["step"] for row in rows] == list(range(1, rows[-1]["step"] + 1))  # steps count on
    coefficients = {row["step"]: row["kl_coef"] for row in rows}
    assert coefficients[back[0] + 1] == 2 * coefficients[back[0]]
    assert abs(next(row["kl"] for row in rows if row["step"] == back[0] + 1)) < 1e-4  # the first checkpoint: the start

    killed_and_resumed(monkeypatch, data, tmp_path / "killed", back[1] + 1, **flags)
    assert rows_of(tmp_path / "killed" / "alarms.jsonl") == alarms
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "killed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_rollback_needs_checkpoints(monkeypatch, data, tmp_path, capsys):
    assert run(monkeypatch, data, tmp_path / "run", on_alarm="rollback", save_strategy="no") == 2
    assert "--on_alarm rollback" in capsys.readouterr().err


def test_joint_optimisation_leaves_the_reward_model_behind(monkeypatch, data, tmp_path):
    flags = {"enable_joint_optimization": "true", "ranked_filename": "ranked_dev.jsonl"}
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 0
    rows = rows_of(tmp_path / "run" / "metrics.jsonl")
    assert all(row["reward_loss"] > 0 for row in rows)
    before, after = (load_file(folder / "model.safetensors") for folder in (data / "reward", tmp_path / "run/reward"))
    assert before.keys() == after.keys() and before["score.weight"].shape == after["score.weight"].shape
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "critic").config.num_labels == 2


@pytest.fixture(scope="module")
def adapters(data):
    """A reward model as `train_reward --use_peft` leaves one: adapters and a head over the actor."""
    folder = data / "adapters"
    model = load_scalar_model(str(data / "actor")).requires_grad_(False)
    model = add_lora(model, task_type="SEQ_CLS", r=4, alpha=8)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    build_char_tokenizer().save_pretrained(folder)
    return folder


def test_adapters_over_one_base_are_trained_saved_and_resumed(monkeypatch, data, tmp_path, adapters):
    flags = {"share_base": "true", "reward_model_path": adapters, "ema_decay": 0.9, "lora_r": 4}
    assert run(monkeypatch, data, tmp_path / "whole", **flags) == 0
    killed_and_resumed(monkeypatch, data, tmp_path / "killed", 3, **flags)
    for name in ("", "critic", "ema"):
        whole, resumed = (load_file(tmp_path / run / name / "adapter_model.safetensors") for run in ("whole", "killed"))
        assert all("lora" in key or "score" in key for key in whole)
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    # the folders load: the policy that was sampled last is the one that comes back
    policy = load_causal_lm(str(tmp_path / "whole"))
    start = load_causal_lm(str(data / "actor"))
    ids = torch.tensor([[1, 5, 6]])
    assert not torch.equal(policy(ids).logits, start(ids).logits)
    critic = load_scalar_model(str(tmp_path / "whole" / "critic"), require_head=True)
    assert critic(ids).logits.shape == (1, 1)


def test_offloading_the_base_itself_is_refused(monkeypatch, data, tmp_path, adapters, capsys):
    flags = {"share_base": "true", "reward_model_path": adapters, "offload_reference": "true"}
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 2
    assert "--offload_reference" in capsys.readouterr().err
