"""The first loss of DPO is ln 2, whatever is trained, in whatever precision, in every family of ours."""

from __future__ import annotations

import json
import math
import random
import sys

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from tiny_models import build_llama, build_pangu
from transformers import AutoTokenizer

from keju import train_dpo
from keju.data_prepare.vocabulary import train_sentencepiece
from keju.models.loading import load_causal_lm
from keju.prepare_data import save_family_tokenizer
from keju.records.writing import write_jsonl
from keju.training.adapters import add_lora, save_model
from keju.training.launch import run_guarded

pytestmark = pytest.mark.slow

TEXT = "守株待兔比喻不主动努力，心存侥幸，希望得到意外的收获。问答系统一二三四五六七八九十"
DROPOUT = {"pangu": ("attn_pdrop", "embd_pdrop", "resid_pdrop"), "llama": ("attention_dropout",)}
DROPOUT["glm"] = ("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob")
TRAINED = {
    "full": [],
    "lora": ["--use_peft"],
    "dora": ["--use_peft", "--use_dora"],
    "qlora": ["--use_peft", "--load_in_4bit"],
    "from adapters": [],
}
# Of the loss: sums over answers of forty tokens, whose reference stood in packs of other trees, times a beta of 0.1
PRECISION = {"float32": ([], 1e-5), "bf16": (["--bf16"], 2e-3), "fp16": (["--fp16"], 5e-4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of each family, with dropout, adapters on it that do something, and ranked answers."""
    folder = tmp_path_factory.mktemp("first")
    tokenizer = build_char_tokenizer(TEXT + "\n")
    save_family_tokenizer(
        train_sentencepiece([TEXT] * 40, 400), {"tokenizer_class": "GLMChineseTokenizer"}, folder / "t"
    )
    tokenizers = {"llama": tokenizer, "pangu": tokenizer, "glm": AutoTokenizer.from_pretrained(folder / "t")}
    dropout = {family: dict.fromkeys(names, 0.1) for family, names in DROPOUT.items()}
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    models = {
        "llama": build_llama(len(tokenizer), hidden_size=64, **dropout["llama"]),
        "pangu": build_pangu(len(tokenizer), hidden_size=64, **ids, **dropout["pangu"]),
        "glm": load_causal_lm(
            "glm-tiny", tokenizer=tokenizers["glm"], config_overrides={"hidden_size": 64, **dropout["glm"]}
        ),
    }
    for family, model in models.items():
        model.save_pretrained(folder / family)
        adapted = add_lora(load_causal_lm(str(folder / family)), task_type="CAUSAL_LM", r=4, alpha=8)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        save_model(adapted, folder / f"{family} adapters")
        for name in (family, f"{family} adapters"):
            tokenizers[family].save_pretrained(folder / name)
    rng = random.Random(0)
    rows = [
        {
            "prompt": "".join(rng.choices(TEXT, k=8)),
            "answers": [{"answer": "".join(rng.choices(TEXT, k=length)), "score": length} for length in (40, 5)],
        }
        for _ in range(12)
    ]
    for part in ("train", "dev"):
        write_jsonl(folder / f"ranked_{part}.jsonl", rows)
    return folder


@pytest.mark.parametrize("family", ["llama", "pangu", "glm"])
@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("trained", TRAINED)
def test_the_first_loss_is_ln_2(monkeypatch, folder, tmp_path, family, precision, trained):
    if trained == "qlora":
        pytest.importorskip("bitsandbytes")
    start = folder / (f"{family} adapters" if trained == "from adapters" else family)
    flags, off = PRECISION[precision]
    argv = ["--model_name_or_path", start, "--data_dir", folder, "--output_dir", tmp_path / "run", "--use_cpu"]
    argv += ["--reference_cache_dir", tmp_path / "cache", "--max_steps", 1, "--per_device_train_batch_size", 12]
    argv += ["--eval_filename", "", "--token_budget", 256, "--gradient_accumulation_steps", 4, "--logging_steps", 1]
    argv += ["--save_strategy", "no", *flags, *TRAINED[trained]]
    monkeypatch.setattr(sys, "argv", ["train_dpo.py", *map(str, argv)])
    assert run_guarded(train_dpo.main) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(math.log(2), abs=off)
    if precision != "float32":  # where every margin is rounding, none of the two sides is favoured
        assert 0.1 <= row["accuracy"] <= 0.9
