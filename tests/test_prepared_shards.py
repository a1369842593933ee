"""Real corpora from raw files to trained models: the shards that prepare_data writes, compressed, read as tokens from
disk, train as plain single files do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from keju import prepare_data, pretrain, train_dpo, train_reward, train_rlhf, train_sft
from keju.data_prepare.pipeline import plan
from keju.records.opening import read_bytes
from keju.training.launch import run_guarded

STEPS = 3
# Part of the raw data: folder -> which files, the first so many lines of each (None: all).
RAW = {
    "classical_modern": ("Classical-Modern", ("bitext/史记", "bitext/陈书", "bitext/辽史", "bitext/隋书"), 900),
    "couplet": ("couplet/test", ("in.txt", "out.txt"), 400),
    "poetry": ("chinese-poetry", ("chuci/chuci.json", "caocaoshiji/caocao.json", "wudai/nantang/poetrys.json"), None),
}
SHARD_BYTES = {"classical_modern": 8_000, "couplet": 6_000, "poetry": 20_000}


def run(monkeypatch, stage, *flags) -> int:
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    return run_guarded(stage.main)


@pytest.fixture(scope="module", params=RAW)
def corpus(request, shared, tmp_path_factory) -> tuple[str, Path, Path]:
    """-> its name, the folder of its shards, and one with the same records as plain single files."""
    source, names, num_lines = RAW[request.param]
    base = tmp_path_factory.mktemp(request.param)
    for name in names:
        lines = (shared / "data/raw" / source / name).read_text(encoding="utf-8").splitlines(keepends=True)
        path = base / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines[:num_lines]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "SHARD_BYTES", SHARD_BYTES[request.param])
        flags = ["--corpus", request.param, "--raw_dir", base / "raw", "--output_dir", base / "shards", "--compress"]
        flags += ["--vocab_size", "3500", "--dev_share", "0.2", "--num_workers", "1"]
        assert run(patch, prepare_data, *flags) == 0
    (base / "plain").mkdir()
    for name in ("pretrain_train", "pretrain_dev", "ranked_train", "ranked_dev", "prompts_train"):
        if request.param == "poetry" or not name.startswith("pretrain"):
            files = sorted((base / "shards").glob(f"{name}*.jsonl.zst"))
            rows = [read_bytes(file).count(b"\n") for file in files]
            assert name not in ("pretrain_train", "ranked_train") or len(files) > 2 and rows[0] < 100 < sum(rows)
            (base / "plain" / f"{name}.jsonl").write_bytes(b"".join(map(read_bytes, files)))
    shutil.copytree(base / "shards/tokenizer", base / "plain/tokenizer")
    return request.param, base / "shards", base / "plain"


def curve(run_folder: Path) -> list[dict]:
    rows = map(json.loads, (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    timed = ("elapsed", "tokens_per_second", "eval_runtime")
    return [{name: value for name, value in row.items() if name not in timed and "seconds" not in name} for row in rows]


def trained_alike(monkeypatch, corpus, output: Path, stage, *flags) -> Path:
    """Trains on the shards, with tokens on disk, and on the plain files, in memory -> the folder of the first run."""
    _, *folders = corpus
    for folder, cache in zip(folders, ("on", "off"), strict=True):
        own = ["--data_dir", folder, "--output_dir", output / folder.name, "--token_cache", cache]
        own += ["--token_cache_dir", output / f"tokens-{folder.name}", "--use_cpu", "--max_steps", STEPS, *flags]
        if stage is train_dpo:
            own += ["--reference_cache_dir", output / f"reference-{folder.name}"]
        assert run(monkeypatch, stage, *own) == 0
    assert len(list(output.glob("tokens-shards/*/manifest.json"))) == 2 and not (output / "tokens-plain").exists()
    ours, plain = output / "shards", output / "plain"
    assert curve(ours) == curve(plain) and [row["step"] for row in curve(ours)][:STEPS] == [1, 2, 3]
    found, expected = (load_file(folder / "model.safetensors") for folder in (ours, plain))
    assert all(found[name].equal(expected[name]) for name in expected)
    return ours


# The samples are of several shards.
TRAINED = ["--max_train_samples", 100, "--max_eval_samples", 20, "--max_length", 128, "--token_budget", 512]
TRAINED += ["--logging_steps", 1, "--learning_rate", 1e-3]


def test_training_from_shards_is_training_from_plain_files(monkeypatch, corpus, tmp_path):
    name, shards, _ = corpus
    scratch = ["--model_name_or_path", "llama-tiny", "--tokenizer_name", shards / "tokenizer"]
    if name == "poetry":
        trained_alike(monkeypatch, corpus, tmp_path / "pretrain", pretrain, *scratch, *TRAINED)
        return
    sft = trained_alike(monkeypatch, corpus, tmp_path / "sft", train_sft, *scratch, *TRAINED)
    start = ["--model_name_or_path", sft]
    reward = trained_alike(monkeypatch, corpus, tmp_path / "reward", train_reward, *start, *TRAINED)
    if name == "classical_modern":
        trained_alike(monkeypatch, corpus, tmp_path / "dpo", train_dpo, *start, *TRAINED)
        return
    trained_alike(monkeypatch, corpus, tmp_path / "kto", train_dpo, *start, *TRAINED, "--loss_type", "kto")
    ppo = ["--reward_model_path", reward, "--rollout_batch_size", 4, "--num_responses", 2, "--max_new_tokens", 6]
    ppo += ["--max_eval_samples", 4, "--max_prompt_length", 48, "--token_budget", 512, "--allow_unfinished", "true"]
    trained_alike(monkeypatch, corpus, tmp_path / "rlhf", train_rlhf, *start, *ppo)
