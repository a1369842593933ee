"""Stages read tokens from disk: the same losses as without, resumed as well; what is made when, by whom."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
import threading
from pathlib import Path

import pytest
from char_tokenizer import CHARACTERS, build_char_tokenizer
from tiny_models import build_llama

from keju import pretrain, tokenize_data, train_reward
from keju.encoding.dataset import EncodedRecords
from keju.encoding.encoder import Encoder
from keju.encoding.token_store import StoredRecords
from keju.models.loading import load_tokenizer
from keju.records import digests
from keju.records.folds import Fold
from keju.records.writing import write_jsonl
from keju.rl.arguments import PromptArguments
from keju.rl.prompts import read_prompts
from keju.training import tree_reading
from keju.training.launch import run_guarded
from keju.training.stage_arguments import DataArguments
from keju.training.tree_reading import TreeRequest, read_trees
from keju.trees.lazy_trees import lengths_of


@pytest.fixture
def folder(tmp_path):
    tokenizer = build_char_tokenizer()
    build_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    rng = random.Random(0)

    def text(longest: int) -> str:
        return "".join(rng.choices(CHARACTERS, k=rng.randint(2, longest)))

    for part in ("train", "dev"):
        write_jsonl(tmp_path / f"pretrain_{part}.jsonl", [{"text": text(90)} for _ in range(40)])
        answers = [[{"answer": text(20), "score": score} for score in (1, 0, -1)] for _ in range(24)]
        write_jsonl(tmp_path / f"ranked_{part}.jsonl", [{"prompt": text(20), "answers": found} for found in answers])
    return tmp_path


def run(monkeypatch, stage, folder: Path, *flags) -> int:
    flags = ["--model_name_or_path", folder / "llama", "--data_dir", folder, "--max_length", 64, *flags]
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    return run_guarded(stage.main)


def losses(run_folder: Path) -> list[tuple]:
    rows = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    timed = ("elapsed", "tokens_per_second", "eval_runtime")
    return [tuple((name, value) for name, value in row.items() if name not in timed) for row in rows]


@pytest.mark.parametrize("stage", [pretrain, train_reward])
def test_training_is_the_same_with_and_without_tokens_on_disk(monkeypatch, folder, stage):
    common = [
        "--token_budget",
        256,
        "--learning_rate",
        1e-2,
        "--logging_steps",
        1,
        "--use_cpu",
        "--num_train_epochs",
        2,
    ]
    common += ["--save_steps", 4, "--token_cache_dir", folder / "tokens"]
    assert run(monkeypatch, stage, folder, *common, "--output_dir", folder / "a", "--token_cache", "off") == 0
    assert not (folder / "tokens").exists()
    assert run(monkeypatch, stage, folder, *common, "--output_dir", folder / "b", "--token_cache", "on") == 0
    assert len(list(folder.glob("tokens/*/manifest.json"))) == 2
    assert losses(folder / "a") == losses(folder / "b") and len(losses(folder / "a")) > 6
    # a run that stopped at step 4 goes on from there and ends with the same weights
    weights = (folder / "a/model.safetensors").read_bytes()
    assert (folder / "b/model.safetensors").read_bytes() == weights
    monkeypatch.setattr(tree_reading, "build_store", None)  # what is there is used
    flags = ["--output_dir", folder / "c", "--token_cache", "on"]
    assert run(monkeypatch, stage, folder, *common, *flags, "--save_total_limit", 99) == 0
    (folder / "c/model.safetensors").unlink()
    for newer in folder.glob("c/checkpoint-*"):
        if newer.name != "checkpoint-4":
            newer.rename(folder / f"moved-{newer.name}")
    assert run(monkeypatch, stage, folder, *common, *flags, "--resume_from_checkpoint", "auto") == 0
    assert (folder / "c/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("stage", ["rlhf", "grpo"])
def test_prompts_are_made_ahead_and_found_whatever_their_limit(monkeypatch, folder, stage):
    cache = ["--token_cache_dir", folder / "tokens"]
    assert (
        run(monkeypatch, tokenize_data, folder, "--stage", stage, *cache, "--train_filename", "ranked_train.jsonl") == 0
    )
    monkeypatch.setattr(tree_reading.TreeRequest, "encoded", None)  # what is there is used
    tokenizer = load_tokenizer(str(folder / "llama"))
    data = PromptArguments(data_dir=str(folder), token_cache_dir=str(folder / "tokens"), max_prompt_length=9)
    prompts = read_prompts(data, tokenizer, "ranked_train.jsonl")
    lengths = lengths_of(prompts.trees)
    assert 0 < len(prompts) < 24 and lengths.max() <= 9


def test_tokens_are_made_ahead_and_found(monkeypatch, folder, capsys):
    flags = ["--stage", "pretrain", "--token_cache_dir", folder / "tokens", "--num_workers", 1]
    (folder / "a.yaml").write_text("max_samples_of_no_stage: 3\nmax_train_samples: 30\n")
    assert run(monkeypatch, tokenize_data, folder, *flags, "--config", folder / "a.yaml") == 0
    out = capsys.readouterr().out
    assert "of 30 records, 0 left out" in out and "of 40 records" in out and "tokens/s" in out
    assert run(monkeypatch, tokenize_data, folder, *flags, "--config", folder / "a.yaml") == 0
    assert capsys.readouterr().out.count("is there already, checked") == 2
    (store,) = (
        path.parent for path in folder.glob("tokens/*/manifest.json") if '"num_records": 30' in path.read_text()
    )
    tokens = bytearray((store / "tokens.npy").read_bytes())
    tokens[-1] ^= 1
    (store / "tokens.npy").write_bytes(tokens)
    assert run(monkeypatch, tokenize_data, folder, *flags, "--config", folder / "a.yaml") == 0
    out = capsys.readouterr().out
    assert "tokens.npy is not what was written; made anew" in out and out.count("is there already") == 1

    def trees(max_samples: int, cache: str = "auto"):
        data = DataArguments(str(folder), "pretrain_train.jsonl", token_cache_dir=str(folder / "tokens"), max_length=64)
        data.token_cache = cache
        encoder = Encoder(build_char_tokenizer(), 64)
        return read_trees(data, data.train_filename, encoder, "text", option="train_filename", max_samples=max_samples)

    assert isinstance(trees(30), StoredRecords) and not isinstance(trees(31), StoredRecords)
    assert isinstance(trees(30, "off"), EncodedRecords) and not isinstance(trees(30, "off"), StoredRecords)
    monkeypatch.setattr(tree_reading, "LARGE", 100)
    assert isinstance(trees(31), StoredRecords)
    # half a store, as a kill leaves it
    (store / "manifest.json").unlink()
    assert isinstance(trees(30), StoredRecords) and "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("cache", ["off", "on"])
def test_what_a_cap_leaves_out_is_said(folder, capsys, cache):
    rows = (folder / "ranked_train.jsonl").read_text().splitlines(keepends=True)
    rows[2:2] = ["{\n", "\n"]  # a bad row, which takes the place of none, and no row
    (folder / "ranked_train.jsonl").write_text("".join(rows))

    def said(most, option="train_filename", fold=None):
        data = DataArguments(str(folder), "ranked_train.jsonl", token_cache_dir=str(folder / "tokens"), max_length=64)
        data.token_cache, data.on_bad_line = cache, "skip"
        encoder = Encoder(build_char_tokenizer(), 64)
        read_trees(data, "ranked_train.jsonl", encoder, "ranked", option=option, max_samples=most, fold=fold)
        return [line for line in capsys.readouterr().out.splitlines() if "leaves out" in line]

    for _ in range(2):  # made and found
        assert said(10) == ["ranked_train.jsonl: --max_train_samples 10 leaves out 14 of 25 records"]
    assert said(1) == ["ranked_train.jsonl: --max_train_samples 1 leaves out 24 of 25 records"]  # the bad one, too
    assert said(10, "eval_filename") == ["ranked_train.jsonl: --max_eval_samples 10 leaves out 14 of 25 records"]
    assert said(24) == said(25) == said(None) == []
    line = "ranked_train.jsonl: --max_train_samples 5 leaves out what comes after 5 records of part 1/2"
    assert said(5, fold=Fold("1/2")) == [line] and said(24, fold=Fold("1/2")) == []


def test_rows_of_large_files_are_counted_once(monkeypatch, folder, capsys):
    monkeypatch.setattr(tree_reading, "LARGE", 100)
    path = folder / "pretrain_train.jsonl"
    os.utime(path, (1, 1))
    monkeypatch.setattr(digests, "SETTLED", -1e18)  # the time of its change is now
    request = TreeRequest(path, [path], Encoder(build_char_tokenizer(), 64), "text", max_samples=4)
    request.stored(folder / "tokens", 1, build=True)
    request.show_cap(request.encoded(), "--max_train_samples", folder / "tokens")
    monkeypatch.setattr(tree_reading, "count_rows", None)
    request.show_cap(request.encoded(), "--max_train_samples", folder / "tokens")
    line = "pretrain_train.jsonl: --max_train_samples 4 leaves out 36 of 40 records"
    assert capsys.readouterr().out.splitlines().count(line) == 2
    with path.open("a") as file:
        file.write('{"text": "甲"}\n')
    monkeypatch.undo()
    monkeypatch.setattr(tree_reading, "LARGE", 100)
    request.show_cap(request.encoded(), "--max_train_samples", folder / "tokens")
    assert "leaves out 37 of 41 records" in capsys.readouterr().out


def test_tokenising_says_what_a_cap_leaves_out(monkeypatch, folder, capsys):
    flags = ["--stage", "sft", "--token_cache_dir", folder / "tokens", "--num_workers", 1]
    assert run(monkeypatch, tokenize_data, folder, *flags, "--max_train_samples", 4, "--max_eval_samples", 5) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "leaves out" in line]
    assert said == [
        "ranked_train.jsonl: --max_train_samples 4 leaves out 20 of 24 records",
        "ranked_dev.jsonl: --max_eval_samples 5 leaves out 19 of 24 records",
    ]


def test_one_of_several_builds_and_the_others_wait(monkeypatch, folder):
    built, found = [], []
    own = tree_reading.build_store
    monkeypatch.setattr(tree_reading, "build_store", lambda *args, **kwargs: (built.append(1), own(*args, **kwargs)))
    data = DataArguments(str(folder), "pretrain_train.jsonl", token_cache_dir=str(folder / "tokens"), token_cache="on")

    def read():
        encoder = Encoder(build_char_tokenizer(), 64)
        found.append(read_trees(data, data.train_filename, encoder, "text", option="train_filename", max_samples=None))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1] and len(found) == 4 and all(list(f.trees) == list(found[0].trees) for f in found)


def test_shards_train_as_one_file(folder):
    rows = (folder / "pretrain_train.jsonl").read_text().splitlines(keepends=True)
    for number, part in enumerate((rows[:13], rows[13:]), start=1):
        path = folder / f"sharded-0000{number}-of-00002.jsonl.gz"
        path.write_bytes(gzip.compress("".join(part).encode()))
    encoder = Encoder(build_char_tokenizer(), 64)
    found = [
        read_trees(
            DataArguments(str(folder), name, token_cache_dir=str(folder / "tokens"), token_cache=cache),
            name, encoder, "text", option="train_filename", max_samples=None,
        )
        for name, cache in (("pretrain_train.jsonl", "off"), ("sharded", "off"), ("sharded.jsonl", "on"))
    ]  # fmt: skip
    assert list(found[0].trees) == list(found[1].trees) == list(found[2].trees)
    assert list(found[1].where) == list(found[2].where)
    assert found[1].where[-1] == f"{folder}/sharded-00002-of-00002.jsonl.gz:27"
    (folder / "sharded-00001-of-00002.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="sharded-00001-of-00002.jsonl.gz: no such file, 1 of 2 shards missing"):
        read_trees(
            DataArguments(str(folder), "sharded"), "sharded", encoder, "text", option="train_filename", max_samples=None
        )  # fmt: skip


@pytest.mark.parametrize("num_workers", [None, 1])
def test_a_shard_that_vanishes_before_it_is_read_is_named(folder, capsys, num_workers):
    """num_workers: of the store; None: in memory, where the list of shards is read anew."""
    path, files = folder / "vanishing", [folder / f"vanishing-0000{number}-of-00002.jsonl" for number in (1, 2)]
    for file in files:
        write_jsonl(file, [{"text": CHARACTERS[:9]}] * 3)
    request = TreeRequest(path, files, Encoder(build_char_tokenizer(), 64), "text")
    cache = folder / "tokens"
    request.folder(cache)
    request.digests = lambda cache: ["as", "before"]  # they were read while it was there
    files[1].unlink()
    read = request.encoded if num_workers is None else lambda: request.stored(cache, num_workers, build=True)
    assert run_guarded(read) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {files[1]}: ") and "o such file" in line
    assert not list(cache.glob("*/")) and not list(cache.glob(".*"))
