"""Actor and reward model of different families, tokenizers and all: GLM with Llama, both ways."""

import json
import sys

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from tiny_models import build_llama, build_scalar_model
from transformers import AutoTokenizer

from keju import train_rlhf
from keju.data_prepare.vocabulary import train_sentencepiece
from keju.encoding.encoder import Encoder
from keju.models.backbone import tree_token_scores
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.prepare_data import save_family_tokenizer
from keju.records.record import Answer, Message, RankedRecord
from keju.records.writing import write_jsonl
from keju.training.launch import run_guarded
from keju.trees.packed_batch import PackedBatch

TEXT = "守株待兔比喻不主动努力，心存侥幸，希望得到意外的收获。问答系统一二三四五六七八九十"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    save_family_tokenizer(
        train_sentencepiece([TEXT] * 40, 400), {"tokenizer_class": "GLMChineseTokenizer"}, folder / "t"
    )
    tokenizers = {"glm": AutoTokenizer.from_pretrained(folder / "t"), "llama": build_char_tokenizer(TEXT + "\n")}
    torch.manual_seed(0)
    models = {
        "glm": load_causal_lm("glm-tiny", tokenizer=tokenizers["glm"], config_overrides={"hidden_size": 64}),
        "llama": build_llama(vocab_size=len(tokenizers["llama"])),
    }
    for family, model in models.items():
        for name, saved in (("actor", model), ("reward", build_scalar_model(model, seed=1))):
            saved.save_pretrained(folder / name / family)
            tokenizers[family].save_pretrained(folder / name / family)
    rows = [{"prompt": TEXT[start : start + 5], "answers": [{"answer": "答", "score": 1}]} for start in range(6)]
    for name in ("prompts_train.jsonl", "ranked_dev.jsonl"):
        write_jsonl(folder / name, rows)
    return folder


@pytest.mark.parametrize(("actor", "reward"), [("glm", "llama"), ("llama", "glm")])
def test_the_reward_model_reads_the_text(monkeypatch, folders, tmp_path, actor, reward):
    flags = {
        "model_name_or_path": folders / "actor" / actor,
        "reward_model_path": folders / "reward" / reward,
        "data_dir": folders,
        "output_dir": tmp_path / "run",
        "max_steps": 2,
        "rollout_batch_size": 4,
        "num_responses": 3,
        "num_mini_batches": 2,
        "max_new_tokens": 3,
        "actor_learning_rate": 1e-3,
        "allow_unfinished": "true",
    }
    argv = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_rlhf.py", *argv])
    assert run_guarded(train_rlhf.main) == 0

    tokenizer = AutoTokenizer.from_pretrained(folders / "reward" / reward)
    judge = load_scalar_model(str(folders / "reward" / reward), tokenizer=tokenizer)
    encoder = Encoder(tokenizer, max_length=256)
    written = AutoTokenizer.from_pretrained(folders / "actor" / actor)
    special = set(written.all_special_tokens) | set(written.get_added_vocab())
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    compared = 0
    for row in samples:
        prompt = next(TEXT[start : start + 5] for start in range(6) if TEXT[start : start + 5] in row["prompt"])
        if any(token in row["response"] for token in special) or not row["response"] or "\ufffd" in row["response"]:
            continue
        tree = encoder.ranked_tree(RankedRecord((Message("user", prompt),), (Answer(row["response"], 1.0),)))
        if not row["finished"]:
            tree.branches[0].tokens = tree.branches[0].tokens[:-1]
        with torch.no_grad():
            expected = tree_token_scores(judge, PackedBatch.from_trees([tree]))[-1, 0]
        assert row["score"] == pytest.approx(float(expected), abs=2e-3)
        compared += 1
    assert compared > 3
