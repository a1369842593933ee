"""Adapters whose base lies elsewhere than their adapter_config.json says: --base_model in the stages that load them."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from safetensors.torch import load_file, save_file
from tiny_models import build_llama

from keju import convert, eval_pretrain, eval_reward, merge, plan, pred_pretrain, train_grpo, train_rlhf, train_sft
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.records.writing import write_jsonl
from keju.rl.arguments import PPOModelArguments
from keju.training.adapters import add_lora
from keju.training.launch import run_guarded
from keju.training.resuming import model_digest

IDS = torch.tensor([[1, 5, 6, 7, 8]])
HUB = "nobody/base"  # never asked: that would take a minute without a network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two bases, adapters of both kinds on the first, which name a repository of a hub, and records."""
    folder = tmp_path_factory.mktemp("base_model")
    tokenizer = build_char_tokenizer()
    for name, scale in (("base", 1), ("other", 2)):
        model = build_llama(vocab_size=len(tokenizer))
        model.model.layers[0].mlp.up_proj.weight.data *= scale
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, kind, load in (("adapters", "CAUSAL_LM", load_causal_lm), ("reward", "SEQ_CLS", load_scalar_model)):
        model = add_lora(load(str(folder / "base")).requires_grad_(False), task_type=kind, r=4, alpha=8)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        rename_base(folder / name, HUB)
        if kind == "CAUSAL_LM":
            torch.save(model(IDS).logits.detach(), folder / "logits.pt")
    rows = [
        {"prompt": text, "answers": [{"answer": "ab", "score": 1}, {"answer": "ba", "score": 0}]} for text in "abcd"
    ]
    write_jsonl(folder / "ranked_train.jsonl", rows)
    return folder


def rename_base(folder, base) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def run(monkeypatch, stage, *flags) -> int:
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    return run_guarded(stage.main)


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_model_is_that_of_the_adapters_on_the_given_base(folder):
    model = load_causal_lm(str(folder / "adapters"), base=str(folder / "base"))
    torch.testing.assert_close(model(IDS).logits, torch.load(folder / "logits.pt"), atol=1e-5, rtol=1e-5)
    assert model.peft_config["default"].base_model_name_or_path == str(folder / "base")
    other = load_causal_lm(str(folder / "adapters"), base=str(folder / "other"))
    assert not torch.allclose(other(IDS).logits, model(IDS).logits, atol=1e-2)
    load_scalar_model(str(folder / "reward"), base=str(folder / "base"), require_head=True)


def test_trained_resumed_and_merged(monkeypatch, folder, tmp_path, capsys):
    def train(base, *flags):
        paths = ["--model_name_or_path", folder / "adapters", "--data_dir", folder, "--output_dir", tmp_path / "run"]
        settings = ["--max_length", 32, "--use_cpu", "--max_steps", 2, "--save_strategy", "steps", "--save_steps", 1]
        names = ["--train_filename", "ranked_train.jsonl", "--base_model", base, "--eval_filename", ""]
        return run(monkeypatch, train_sft, *paths, *settings, *names, *flags)

    assert train(folder / "base") == 0
    saved = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(folder / "base")
    load_causal_lm(str(tmp_path / "run"))  # needs no flag any more
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    (tmp_path / "run" / "summary.json").unlink()
    capsys.readouterr()
    assert train(folder / "other", "--resume_from_checkpoint", "auto") == 2
    assert "was made with other content of --model_name_or_path" in last_line(capsys)
    shutil.copytree(folder / "base", tmp_path / "moved")
    assert train(tmp_path / "moved", "--resume_from_checkpoint", "auto") == 0

    paths = ["--model_name_or_path", folder / "adapters", "--output_dir", tmp_path / "merged"]
    assert run(monkeypatch, merge, *paths, "--base_model", folder / "base") == 0
    merged = load_causal_lm(str(tmp_path / "merged"))
    torch.testing.assert_close(merged(IDS).logits, torch.load(folder / "logits.pt"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "base", "said"),
    [
        ("adapters", "nowhere", "--base_model: {folder}/nowhere is not a folder"),
        ("adapters", "reward", "--base_model: {folder}/reward holds adapters, which need a base of their own"),
        ("base", "other", "--base_model: {folder}/base holds no adapters (no adapter_config.json) that need a base"),
    ],
)
@pytest.mark.parametrize("stage", [train_sft, pred_pretrain, eval_reward, plan])
def test_mistakes_are_one_line(monkeypatch, folder, tmp_path, capsys, stage, model, base, said):
    flags = ["--model_name_or_path", folder / model, "--base_model", folder / base]
    if stage is not plan:
        flags += ["--data_dir", folder, "--output_dir", tmp_path / "run"]
    if stage is train_sft:
        flags += ["--train_filename", "ranked_train.jsonl"]
    assert run(monkeypatch, stage, *flags) == 2
    assert said.format(folder=folder) in last_line(capsys)


@pytest.mark.parametrize("name", ["llama-tiny", "base"])
def test_random_weights_need_no_base(folder, name):
    name = name if name == "llama-tiny" else str(folder / name)
    with pytest.raises(ValueError, match=r"^base_model: .* holds no adapters"):
        load_causal_lm(name, base=str(folder / "base"), from_scratch=name != "llama-tiny")


def test_a_served_model_is_whole(monkeypatch, folder, tmp_path, capsys):
    flags = ["--model_name_or_path", "x", "--data_dir", folder, "--output_dir", tmp_path / "run"]
    flags += ["--server_url", "http://127.0.0.1:1/v1", "--tokenizer_name", folder / "base", "--base_model", folder]
    assert run(monkeypatch, eval_pretrain, *flags) == 2
    assert "--base_model: the model on --server_url is whole" in last_line(capsys)


@pytest.mark.parametrize("stage", [train_rlhf, train_grpo])
def test_each_model_of_a_policy_has_its_base(monkeypatch, folder, tmp_path, capsys, stage):
    paths = ["--reward_model_path", folder / "reward", "--output_dir", tmp_path / "run", "--data_dir", folder]
    if stage is train_rlhf:
        paths += ["--model_name_or_path", folder / "adapters", "--base_model", folder / "base"]
    else:
        paths += ["--model_name_or_path", folder / "base"]
    assert run(monkeypatch, stage, *paths, "--reward_base_model", folder / "nowhere") == 2
    assert f"--reward_base_model: {folder}/nowhere is not a folder" in last_line(capsys)
    if stage is train_rlhf:
        steps = ["--max_steps", 1, "--rollout_batch_size", 2, "--num_responses", 2, "--num_mini_batches", 1]
        steps += ["--max_prompt_length", 30, "--max_new_tokens", 4, "--train_filename", "ranked_train.jsonl"]
        steps += ["--eval_filename", "ranked_train.jsonl", "--max_eval_samples", 2, "--use_cpu"]
        assert run(monkeypatch, stage, *paths, *steps, "--reward_base_model", folder / "base") == 0
        saved = json.loads((tmp_path / "run" / "critic" / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == str(folder / "base")


def test_bases_of_models_that_are_not_given():
    with pytest.raises(ValueError, match="--judge_base_model: there is no --judge_model_path"):
        PPOModelArguments("a", "b", judge_base_model="c")


def test_what_a_resumed_run_compares(folder, tmp_path):
    hub = model_digest(str(folder / "adapters"), tmp_path)
    base, other = (model_digest(str(folder / "adapters"), tmp_path, str(folder / name)) for name in ("base", "other"))
    shutil.copytree(folder / "base", tmp_path / "copy")
    assert model_digest(str(folder / "adapters"), tmp_path, str(tmp_path / "copy")) == base
    assert len({hub, base, other}) == 3


def test_a_base_that_lacks_a_weight(folder, tmp_path):
    """transformers forgets what was missing in the base once the adapters are there, and leaves it random."""
    shutil.copytree(folder / "base", tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"base: lacks 1 weights of LlamaForCausalLM, first .*layers\.1\.mlp\.up_proj"):
        load_causal_lm(str(folder / "adapters"), base=str(tmp_path / "base"))


def test_adapters_without_a_head_are_no_reward_model(folder):
    """The head was random, and nothing said so."""
    with pytest.raises(ValueError, match="adapters is not a reward model"):
        load_scalar_model(str(folder / "adapters"), base=str(folder / "base"), require_head=True)
    with pytest.raises(ValueError, match="adapters holds adapters of a model without a head"):
        load_scalar_model(str(folder / "adapters"), base=str(folder / "base"))


def test_a_folder_of_both(monkeypatch, folder, tmp_path, capsys):
    """Whole weights and adapters beside one another: transformers takes the first with the second on top."""
    shutil.copytree(folder / "base", tmp_path / "both")
    for path in (folder / "adapters").glob("adapter_*"):
        shutil.copy(path, tmp_path / "both")
    with pytest.raises(ValueError, match="both holds whole weights and adapters"):
        load_causal_lm(str(tmp_path / "both"))
    assert run(monkeypatch, convert, "--model_name_or_path", folder / "adapters", "--output_dir", tmp_path / "o") == 2
    assert "holds adapters; make one model of them and their base first" in last_line(capsys)
