"""The training stages from their command lines: what they leave behind, and how they refuse bad input."""

from __future__ import annotations

import json
import random
import shutil
import sys

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from safetensors.torch import load_file
from tiny_models import DROPOUT, build_llama, build_pangu, build_scalar_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from keju import doctor, pretrain, train_dpo, train_reward, train_sft
from keju.encoding.encoder import Encoder
from keju.records.writing import write_jsonl
from keju.training.launch import run_guarded

NUM_ROWS = 12
FLAGS = ["--max_length", 64, "--token_budget", 256, "--learning_rate", 1e-2, "--logging_steps", 1, "--use_cpu"]


def text(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(CHARACTERS, k=length))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama and a tiny Pangu with their tokenizer, and records of each kind."""
    folder = tmp_path_factory.mktemp("train")
    tokenizer = build_char_tokenizer()
    llama = build_llama(vocab_size=len(tokenizer))
    for name, model in (
        ("llama", llama),
        ("pangu", build_pangu(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **DROPOUT["pangu"])),
        ("reward", build_scalar_model(llama)),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    for part in ("train", "dev"):
        write_jsonl(
            folder / f"ranked_{part}.jsonl",
            [
                {
                    "prompt": text(rng, rng.randint(1, 20)),
                    "answers": [{"answer": text(rng, rng.randint(1, 15)), "score": score} for score in (1, 0, -1)],
                }
                for _ in range(NUM_ROWS)
            ],
        )
        write_jsonl(
            folder / f"pretrain_{part}.jsonl", [{"text": text(rng, rng.randint(2, 90))} for _ in range(NUM_ROWS)]
        )
    return folder


def run(monkeypatch, stage, folder, output, *flags, model="llama", data=None, flags_at_the_end=()) -> int:
    flags = ["--model_name_or_path", folder / model, "--data_dir", data or folder, "--output_dir", output, *flags]
    flags += [*FLAGS, *flags_at_the_end]
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    return run_guarded(stage.main)


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


STAGES = {"pretrain": pretrain, "sft": train_sft, "reward": train_reward, "dpo": train_dpo}
PLOTS = {"reward": "reward_distribution.png", "dpo": "margins.png"}


@pytest.mark.parametrize("model", ["llama", "pangu"])
@pytest.mark.parametrize("name", STAGES)
def test_stage_leaves_a_checkpoint_and_its_pictures(folder, tmp_path, monkeypatch, capsys, name, model):
    out = tmp_path / "run"
    extra = ["--reference_cache_dir", tmp_path / "cache"] if name == "dpo" else []
    assert run(monkeypatch, STAGES[name], folder, out, "--num_train_epochs", 4, *extra, model=model) == 0
    output = capsys.readouterr().out
    assert "What is learned: one example" in output and "eos" in output
    pictures = ["loss.png", *filter(None, [PLOTS.get(name)])]
    for file in ("args.json", "metrics.jsonl", "summary.json", f"{name}.log", *pictures):
        assert (out / file).stat().st_size > 0, file
    summary = read(out / "summary.json")
    assert summary["finished"] and summary["last_loss"] < summary["first_loss"]
    assert summary["tokens"] > 0 and summary["tokens_per_second"] > 0
    auto = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    loaded = auto.from_pretrained(out, output_loading_info=True)[1]
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(out).eos_token_id == 2
    if name in ("reward", "dpo"):
        assert 0 <= summary["heldout_accuracy"] <= 1 and summary["heldout_pairs"] == NUM_ROWS * 3


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        (train_dpo, ["--loss_type", "simpo", "--beta", "2", "--simpo_gamma", "0.3"]),
        (train_dpo, ["--loss_type", "sigmoid", "bco_pair", "sft", "--loss_weights", "0.8", "0.2", "1"]),
        (train_dpo, ["--loss_type", "kto", "--undesirable_weight", "0.5"]),
        (train_dpo, ["--ld_alpha", "0.5"]),
        (train_reward, ["--loss_type", "plackett_luce"]),
        (train_reward, ["--margin_coef", "0.5", "--label_smoothing", "0.1", "--center_rewards_coefficient", "0.01"]),
        (train_reward, ["--fold", "2/2"]),
    ],
)
def test_losses_from_the_command_line(folder, tmp_path, monkeypatch, capsys, stage, flags):
    if stage is train_dpo:
        flags = [*flags, "--reference_cache_dir", tmp_path / "cache"]
    assert run(monkeypatch, stage, folder, tmp_path / "out", *flags, "--max_steps", 2) == 0
    summary = read(tmp_path / "out" / "summary.json")
    assert 0 <= summary["heldout_accuracy"] <= 1 and summary["heldout_pairs"] == 3 * NUM_ROWS
    needs_reference = stage is train_dpo and "simpo" not in flags
    assert ("Reference log-probabilities" in capsys.readouterr().out) == needs_reference


@pytest.mark.parametrize("stage, out_type", [(train_sft, "CAUSAL_LM"), (train_reward, "SEQ_CLS")])
def test_adapters(folder, tmp_path, monkeypatch, stage, out_type):
    assert run(monkeypatch, stage, folder, tmp_path / "run", "--use_peft", "--max_steps", 2) == 0
    config = read(tmp_path / "run" / "adapter_config.json")
    assert config["task_type"] == out_type and any(name.endswith("q_proj") for name in config["target_modules"])
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_adapters_with_whole_layers(folder, tmp_path, monkeypatch):
    """Embeddings that have to learn new tokens are trained, and saved beside the adapters."""
    flags = ["--use_peft", "--lora_modules_to_save", "embed_tokens", "lm_head", "--max_steps", 2]
    assert run(monkeypatch, train_sft, folder, tmp_path / "run", *flags) == 0
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    base = load_file(folder / "llama" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        (key,) = [key for key in saved if key.endswith(name)]
        assert saved[key].shape == base[name].shape and not torch.equal(saved[key], base[name])


def test_reference_is_computed_once_and_only_for_what_changed(folder, tmp_path, monkeypatch, capsys):
    def printed(number, data):
        flags = ["--reference_cache_dir", tmp_path / "cache", "--max_steps", 1]
        assert run(monkeypatch, train_dpo, folder, tmp_path / f"run{number}", *flags, data=data) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Reference"))

    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "dev"):
        shutil.copy(folder / f"ranked_{part}.jsonl", data)
    assert printed(1, data) == f"Reference log-probabilities: {2 * NUM_ROWS} computed, 0 from the cache."
    assert printed(2, data) == f"Reference log-probabilities: 0 computed, {2 * NUM_ROWS} from the cache."
    lines = (data / "ranked_train.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[3])
    row["answers"][0]["answer"] += "好"
    lines[3] = json.dumps(row, ensure_ascii=False)
    (data / "ranked_train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert printed(3, data) == f"Reference log-probabilities: 1 computed, {2 * NUM_ROWS - 1} from the cache."


def test_killed_between_checkpoints_and_resumed(folder, tmp_path, monkeypatch, capsys):
    flags = ["--save_steps", 2, "--save_strategy", "steps", "--max_steps", 6, "--per_device_train_batch_size", 2]
    assert run(monkeypatch, train_sft, folder, tmp_path / "whole", *flags) == 0
    out = tmp_path / "broken"
    assert run(monkeypatch, train_sft, folder, out, *flags) == 0
    shutil.rmtree(out / "checkpoint-6")
    (out / "summary.json").unlink()
    assert run(monkeypatch, train_sft, folder, out, *flags) == 2
    assert "already holds an unfinished run" in last_line(capsys)
    assert run(monkeypatch, train_sft, folder, out, *flags, "--resume_from_checkpoint", "auto") == 0
    a = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict()
    b = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert read(out / "summary.json")["tokens"] == read(tmp_path / "whole" / "summary.json")["tokens"]


def corrupted(folder, tmp_path, line: str, number: int = 3):
    data = tmp_path / "data"
    data.mkdir()
    lines = (folder / "ranked_train.jsonl").read_text(encoding="utf-8").splitlines()
    lines[number - 1] = line
    (data / "ranked_train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data


BAD_LINES = {
    "malformed": ('{"prompt": "问", ', "malformed JSON"),
    "wrong type": ('{"prompt": 7, "answers": [{"answer": "答", "score": 1}]}', "prompt"),
    "no score": ('{"prompt": "问", "answers": [{"answer": "答"}]}', "score"),
    "score of text": ('{"prompt": "问", "answers": [{"answer": "答", "score": "high"}]}', "score"),
    "empty answer": ('{"prompt": "问", "answers": [{"answer": "", "score": 1}]}', "empty"),
    "unknown fields": ('{"question": "问"}', "question"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_are_named_or_skipped_and_counted(folder, tmp_path, monkeypatch, capsys, case):
    line, word = BAD_LINES[case]
    data = corrupted(folder, tmp_path, line)
    flags = ["--eval_filename", folder / "ranked_dev.jsonl"]
    assert run(monkeypatch, train_reward, folder, tmp_path / "run", *flags, data=data) == 2
    message = last_line(capsys)
    assert message.startswith("error: ") and "ranked_train.jsonl:3: " in message and word in message
    assert not (tmp_path / "run").exists(), "nothing half-written stays"
    skip = [*flags, "--on_bad_line", "skip", "--max_steps", 1]
    assert run(monkeypatch, train_reward, folder, tmp_path / "run", *skip, data=data) == 0
    assert f"left out 1 of {NUM_ROWS} records" in capsys.readouterr().out


def test_all_scores_equal(folder, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": "问", "answers": [{"answer": a, "score": 1} for a in ("答", "回答")]}] * 3
    write_jsonl(data / "ranked_train.jsonl", rows)
    for stage in (train_reward, train_dpo):
        assert run(monkeypatch, stage, folder, tmp_path / "run", "--eval_filename", "", data=data) == 2
        assert "all answers have the same score" in last_line(capsys)


MISTAKES = {
    "no data": (["--train_filename", "nowhere.jsonl"], "--train_filename", "nowhere.jsonl does not exist"),
    "other files": (["--train_filename", "chat_train.jsonl"], "this folder has ", "ranked_train.jsonl"),
    "none held out": (["--eval_filename", "chat_dev.jsonl"], "chat_dev.jsonl does not", '--eval_filename "" trains'),
    "no model": (["--model_name_or_path", "./nowhere"], "--model_name_or_path", "./nowhere does not exist"),
    "unknown flag": (["--learning_rat", "1"], "--learning_rat", "did you mean --learning_rate?"),
    "bad value": (["--max_steps", "many"], "--max_steps", "many"),
    "too long a record": (["--on_long", "error", "--max_length", "8"], "ranked_train.jsonl:", "--max_length 8"),
    "tree over the budget": (["--token_budget", "16"], "--token_budget", "16"),
    "wrong kind": (["--train_filename", "pretrain_train.jsonl"], "pretrain_train.jsonl:1", "ranked or chat records"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(folder, tmp_path, monkeypatch, capsys, case):
    flags, *words = MISTAKES[case]
    # Given twice, the later flag wins
    assert run(monkeypatch, train_sft, folder, tmp_path / "run", flags_at_the_end=flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1 and all(word in errors[0] for word in words), errors
    assert not (tmp_path / "run").exists()


def test_tokenizer_without_end_token(folder, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "model"
    shutil.copytree(folder / "llama", broken)
    config = read(broken / "tokenizer_config.json")
    config.pop("eos_token")
    (broken / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert run(monkeypatch, train_sft, tmp_path, tmp_path / "run", model="model", data=folder) == 2
    assert "has no eos_token" in last_line(capsys)


def test_tokenizer_without_pad_token_trains_and_learns_its_end(folder, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    shutil.copytree(folder / "llama", model)
    config = read(model / "tokenizer_config.json")
    config.pop("pad_token")
    config.pop("unk_token", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert run(monkeypatch, train_sft, tmp_path, tmp_path / "run", "--max_steps", 1, model="model", data=folder) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "</s>" in line]
    assert rows and any("yes" in row for row in rows)


def test_damaged_weights(folder, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    shutil.copytree(folder / "llama", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(monkeypatch, train_sft, tmp_path, tmp_path / "run", model="model", data=folder) == 2
    assert "damaged" in last_line(capsys)


def test_disk_full_while_saving(folder, tmp_path, monkeypatch, capsys):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    assert run(monkeypatch, train_sft, folder, tmp_path / "run", "--max_steps", 1) == 1
    message = capsys.readouterr().err
    assert "disk" in message.lower() and "Traceback" not in message
    assert not (tmp_path / "run" / "summary.json").exists()


def test_doctor_compares_with_the_template(folder, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    shutil.copytree(folder / "llama", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}<think>{% endif %}"
    tokenizer.save_pretrained(model)
    argv = ["doctor.py", "--model_name_or_path", model, "--data_dir", folder, "--stage", "sft", "--max_length", 64]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    assert run_guarded(doctor.main) == 0
    shown = capsys.readouterr().out
    assert "records equal its own rendering, token by token" in shown
    # Where our tokens are not the template's, the first record that shows it is named.
    spans = Encoder._spans

    def shifted(*args, **kwargs):
        ids, found = spans(*args, **kwargs)
        return [ids[1], ids[0], *ids[2:]], found

    monkeypatch.setattr(Encoder, "_spans", shifted)
    assert run_guarded(doctor.main) == 2
    assert "is not that of the chat template's own rendering" in last_line(capsys)


def test_doctor_refuses_a_double_start_token(folder, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    shutil.copytree(folder / "llama", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    tokenizer.chat_template = "<s><s>" + turns
    tokenizer.save_pretrained(model)
    argv = ["doctor.py", "--model_name_or_path", model, "--data_dir", folder, "--stage", "sft", "--max_length", 64]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    assert run_guarded(doctor.main) == 2
    assert "two <s> at the start" in last_line(capsys)


def marked_rows(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return [{"prompt": text(rng, 8), "completion": text(rng, 6), "label": number % 2} for number in range(count)]


def test_kto_learns_from_answers_without_pairs(folder, tmp_path, monkeypatch, capsys):
    for part in ("train", "dev"):
        write_jsonl(tmp_path / f"data/ranked_{part}.jsonl", marked_rows(8, seed=len(part)))
    flags = ["--reference_cache_dir", tmp_path / "cache"]
    assert (
        run(monkeypatch, train_dpo, folder, tmp_path / "kto", *flags, "--loss_type", "kto", data=tmp_path / "data") == 0
    )
    figures = json.loads((tmp_path / "kto/summary.json").read_text())
    assert figures["heldout_pairs"] == 0 and "heldout_accuracy" not in figures
    assert "No prompt of the held-out records has a good and a bad answer" in capsys.readouterr().out
    assert run(monkeypatch, train_dpo, folder, tmp_path / "dpo", *flags, data=tmp_path / "data") == 2
    assert "one answer alone, nothing to prefer" in capsys.readouterr().err
    assert run(monkeypatch, train_sft, folder, tmp_path / "sft", data=tmp_path / "data") == 0
    assert "the answer is marked as bad" in capsys.readouterr().out
