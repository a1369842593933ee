"""PPO with other optimizers, frozen weights, and reward models that read in another way than the actor."""

# ruff: noqa: F811  (`data` is a fixture, and an argument of those who want it)

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from safetensors.torch import load_file
from test_train_rlhf import data, killed_and_resumed, rows_of, run  # noqa: F401
from transformers import AutoModelForSequenceClassification

from keju.models.loading import load_scalar_model


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_8bit"])
def test_optimizers_by_name(monkeypatch, data, tmp_path, optimizer):
    if "8bit" in optimizer:
        pytest.importorskip("bitsandbytes")
    flags = {"optim": optimizer, "max_steps": 3, "save_steps": 1}
    assert run(monkeypatch, data, tmp_path / "whole", **flags) == 0
    killed_and_resumed(monkeypatch, data, tmp_path / "resumed", 2, **flags)
    for name in ("model.safetensors", "critic/model.safetensors"):
        start = load_file(data / ("reward" if "critic" in name else "actor") / "model.safetensors")
        whole, resumed = (load_file(tmp_path / folder / name) for folder in ("whole", "resumed"))
        assert any(not torch.equal(whole[key], start[key]) for key in whole)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_frozen_weights_rest(monkeypatch, data, tmp_path, capsys):
    """Of actor and critic both; the head has another name in each."""
    assert run(monkeypatch, data, tmp_path / "run", freeze="*embed*", freeze_first_layers=1, max_steps=2) == 0
    said = capsys.readouterr().out
    assert "Trained of the actor: " in said and "Trained of the critic: " in said
    for folder, start in (("", "actor"), ("critic", "reward")):
        before, after = (load_file(path / "model.safetensors") for path in (data / start, tmp_path / "run" / folder))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and not {name for name in changed if "embed" in name or ".layers.0." in name}
    assert run(monkeypatch, data, tmp_path / "other", freeze="*embed*", share_base="true") == 2
    assert "--freeze: adapters are trained" in capsys.readouterr().err


def reward_with(data, folder, *, template: str | None = None, positions: int = 256) -> None:
    """The reward model with a chat template of its own, or with fewer positions."""
    model = AutoModelForSequenceClassification.from_pretrained(data / "reward")
    model.config.max_position_embeddings = positions
    model.save_pretrained(folder)
    tokenizer = build_char_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def test_a_reward_model_of_another_template_reads_its_own(monkeypatch, data, tmp_path, capsys):
    """The score of a response is what the reward model says to prompt and answer in the template it was trained in."""
    template = "{{ bos_token }}{% for m in messages %}成{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    template += "{% endif %}{% endfor %}{% if add_generation_prompt %}成{% endif %}"
    reward_with(data, tmp_path / "reward", template=template)
    flags = {"reward_model_path": tmp_path / "reward", "max_steps": 1}
    assert run(monkeypatch, data, tmp_path / "run", **flags) == 0
    assert "another tokenizer than the actor's (chat template)" in capsys.readouterr().out
    tokenizer = build_char_tokenizer()
    judge = load_scalar_model(str(data / "reward")).eval()
    rows = rows_of(tmp_path / "run" / "samples.jsonl")
    first = next(row for row in rows if row["response"] and "<" not in row["response"])  # special tokens are no text
    prompt = first["prompt"].removeprefix("<s>").removesuffix("\n")
    answer = first["response"]
    ids = [1, *tokenizer.encode(f"成{prompt}成{answer}", add_special_tokens=False), *([2] if first["finished"] else [])]
    with torch.no_grad():
        score = judge(input_ids=torch.tensor([ids])).logits.item()
    assert first["score"] == pytest.approx(score, abs=1e-4)


def test_a_reward_model_with_too_few_positions_is_refused(monkeypatch, data, tmp_path, capsys):
    reward_with(data, tmp_path / "reward", positions=16)
    assert run(monkeypatch, data, tmp_path / "run", reward_model_path=tmp_path / "reward") == 2
    said = capsys.readouterr().err
    assert "--reward_model_path: " in said and "has 16 positions; prompts and --max_new_tokens 8 come to 22" in said
