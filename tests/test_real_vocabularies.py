"""Real tokenizers of published models through whole stages, with random weights of a few dimensions."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from keju import eval_pretrain, train_sft
from keju.models.baichuan import BaichuanConfig, BaichuanForCausalLM
from keju.models.loading import load_tokenizer
from keju.records.writing import write_jsonl
from keju.training.launch import run_guarded

SIZES = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.2)


@pytest.fixture(scope="module")
def baichuan2(shared, tmp_path_factory):
    """A folder as published: config.json, tokenizer.model, tokenizer_config.json and the roles' tokens."""
    folder = tmp_path_factory.mktemp("baichuan2")
    shutil.copy(shared / "data" / "tokenizers" / "baichuan2" / "tokenizer.model", folder)
    fields = {
        "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        **{"add_bos_token": False, "add_eos_token": False, "model_max_length": 4096},
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    torch.manual_seed(0)
    config = BaichuanConfig(vocab_size=125696, bos_token_id=1, eos_token_id=2, pad_token_id=0, **SIZES)
    BaichuanForCausalLM(config).save_pretrained(folder)
    path = folder / "generation_config.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {"user_token_id": 195, "assistant_token_id": 196}))
    return folder


def run(monkeypatch, stage, model, output, *flags) -> int:
    argv = ["--model_name_or_path", model, "--data_dir", output.parent, "--output_dir", output, *flags]
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, argv)])
    return run_guarded(stage.main)


@pytest.mark.parametrize(
    "flags", [["--num_shots", "1"], ["--apply_chat_template", "--protocol", "instruction"]], ids=str
)
def test_baichuan2_is_evaluated(monkeypatch, baichuan2, tmp_path, flags):
    """The text that trees were once checked with was a single token of this vocabulary."""
    choices = ["比喻做多余的事", "比喻前后一致", "形容非常高兴", "一年四季"]
    rows = [
        {"idiom": idiom, "choices": choices, "answer": n % 4}
        for n, idiom in enumerate(("画蛇添足", "始终如一", "欢天喜地"))
    ]
    write_jsonl(tmp_path / "idiom_mc_test.jsonl", rows)
    write_jsonl(tmp_path / "idiom_mc_dev.jsonl", [{**rows[0], "idiom": "一年到头", "answer": 3}])
    assert run(monkeypatch, eval_pretrain, baichuan2, tmp_path / "eval", *flags) == 0
    (result,) = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))["results"]
    assert result["num_items"] == 3 and 0 <= result["accuracy"] <= 1


def test_baichuan2_is_trained(monkeypatch, baichuan2, tmp_path):
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好，很高兴见到你。"}]
    write_jsonl(tmp_path / "train.jsonl", [{"messages": messages}] * 2)
    flags = [
        "--train_filename",
        "train.jsonl",
        "--eval_filename",
        "",
        "--max_steps",
        1,
        "--use_cpu",
        "--max_length",
        64,
    ]
    assert run(monkeypatch, train_sft, baichuan2, tmp_path / "sft", *flags) == 0
    saved = load_tokenizer(str(tmp_path / "sft"))
    assert (saved.user_token_id, saved.assistant_token_id) == (195, 196)
