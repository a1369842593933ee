"""Processes that encode: order, errors, every tokenizer, and what a killed build leaves behind."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from char_tokenizer import CHARACTERS, build_char_tokenizer
from worker_functions import dies, fails_at_five, has_no_memory, sleeps_but_for_the_first, where

from keju.encoding import workers
from keju.encoding.encoder import Encoder
from keju.encoding.store_build import encode_block
from keju.encoding.workers import map_in_order
from keju.models.loading import load_tokenizer
from keju.records.writing import write_jsonl
from keju.training.tree_reading import TreeRequest


def test_workers_end_in_the_middle_of_an_item(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "HELP_WHILE_THEY_START", False)
    results = map_in_order(sleeps_but_for_the_first, [(tmp_path, number) for number in range(4)], 2)
    assert next(results) == 0
    results.close()
    assert not list(tmp_path.glob("ended*")) and not psutil.Process().children(recursive=True)


def test_this_process_works_until_others_have_started():
    found: list[int] = []
    for number, (same, process) in enumerate(map_in_order(where, itertools.count(), 2)):
        assert number == same < 10_000
        found.append(process)
        if len(set(found)) == 3 and found[-20:].count(os.getpid()) == 0:
            break
    assert found[0] == os.getpid()
    assert found == sorted(found, key=lambda process: process != os.getpid())  # and not any more from then on
    assert not psutil.Process().children(recursive=True)


def test_workers_keep_the_order_and_do_not_run_ahead(monkeypatch):
    monkeypatch.setattr(workers, "HELP_WHILE_THEY_START", False)
    read = []
    squares = map_in_order(fails_at_five, (read.append(n) or n for n in (0, 1, 2, 3, 4, 9, 8, 7)), 2)
    assert next(squares) == 0 and len(read) <= 5
    assert list(squares) == [1, 4, 9, 16, 81, 64, 49]
    assert not psutil.Process().children(recursive=True)
    with pytest.raises(RuntimeError, match="ArithmeticError: five"):
        list(map_in_order(fails_at_five, range(10), 2))
    with pytest.raises(ChildProcessError, match="give fewer --num_workers"):
        list(map_in_order(dies, range(10), 2))
    for num_workers in (1, 2):
        with pytest.raises(MemoryError):
            list(map_in_order(has_no_memory, range(10), num_workers))
    assert not psutil.Process().children(recursive=True)


MAIN = """
import sys
from pathlib import Path
from keju.encoding import workers
import work
with Path("imports.txt").open("a") as file:
    file.write(f"{__name__}\\n")
if __name__ == "__main__":
    workers.HELP_WHILE_THEY_START = False
    print(*workers.map_in_order(work.loaded, ["main", "torch", "transformers", "work"] * 3, 3))
"""
WORK = """
import sys
import transformers
def loaded(name):
    return name in sys.modules
"""


def test_workers_import_neither_the_main_module_nor_model_families(tmp_path):
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "work.py").write_text(WORK)
    for command in (["-m", "main"], ["main.py"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False", "True", "True"] * 3
        assert (tmp_path / "imports.txt").read_text() == "__main__\n"
        (tmp_path / "imports.txt").unlink()


def test_a_function_that_does_not_load_in_the_workers_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "HELP_WHILE_THEY_START", False)
    (tmp_path / "absent.py").write_text("def same(item):\n    return item\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    same = importlib.import_module("absent").same
    (tmp_path / "absent.py").unlink()
    with pytest.raises(RuntimeError, match="No module named 'absent'"):
        list(map_in_order(same, range(10), 2))
    assert not psutil.Process().children(recursive=True)


# A folder of ../shared/data/tokenizers, its file, the name and the class that it has in a tokenizer folder.
FAMILIES = [
    ("llama", "tokenizer.model", "tokenizer.model", "BaichuanTokenizer"),
    ("chatglm2-6b", "tokenizer.model", "tokenizer.model", "ChatGLM2Tokenizer"),
    ("baichuan-m1", "tokenizer.model", "ice_text.model", "ChatGLMTokenizer"),
    ("glm-chinese", "cog-pretrain.model", "cog-pretrain.model", "GLMChineseTokenizer"),
    ("pangu", "vocab.model", "vocab.model", "GPTPanguTokenizer"),
    ("qwen", "qwen.tiktoken", "qwen.tiktoken", "QWenTokenizer"),
]


@pytest.mark.parametrize(("source", "file", "name", "class_name"), FAMILIES)
def test_every_tokenizer_travels_to_the_workers(shared, tmp_path, monkeypatch, source, file, name, class_name):
    (tmp_path / name).write_bytes((shared / "data/tokenizers" / source / file).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.add_tokens(["守株待兔的人"])  # as --add_tokens does, after loading
    texts = ["科举是一种考试。Keju 1905", "守株待兔的人\n等了很久", "🐉 龘"]
    rows = [(0, Path("a"), line, {"text": text}) for line, text in enumerate(texts, start=1)]
    encode = partial(encode_block, encoder=Encoder(tokenizer, 64), form="text", on_bad_line="error", fold=None)
    monkeypatch.setattr(workers, "HELP_WHILE_THEY_START", False)
    for ours, row in zip(map_in_order(encode, [[row] for row in rows], 2), rows, strict=True):
        here = encode([row])
        assert ours.error is None and ours.totals == here.totals and ours.totals[0].num_tokens > 2
        assert ours.columns.arrays["tokens"].tolist() == here.columns.arrays["tokens"].tolist()


BUILDING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from char_tokenizer import build_char_tokenizer
from keju.encoding import workers
from keju.encoding.encoder import Encoder
from keju.training import tree_reading
workers.HELP_WHILE_THEY_START = False
tree_reading.Progress.advance = lambda *args, **more: time.sleep(0.3)
path = Path(sys.argv[1])
tree_reading.TreeRequest(path, [path], Encoder(build_char_tokenizer(), 4096), "text").stored(
    Path(sys.argv[2]), 2, build=True
)
"""


def test_nothing_but_a_folder_aside_is_left_by_a_build_that_is_killed(tmp_path):
    rng, path, cache = random.Random(0), tmp_path / "a.jsonl", tmp_path / "tokens"
    write_jsonl(path, ({"text": "".join(rng.choices(CHARACTERS, k=500))} for _ in range(4000)))
    command = [sys.executable, "-c", BUILDING, str(path), str(cache), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(part.stat().st_size > 100_000 for part in cache.glob(".*.part/tokens.npy")):
            assert process.poll() is None
            time.sleep(0.05)
        others = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert len(others) >= 3  # two workers and their host
    assert not psutil.wait_procs(others, timeout=20)[1]
    request = TreeRequest(path, [path], Encoder(build_char_tokenizer(), 4096), "text")
    folder = request.folder(cache)
    assert not folder.exists() and list(cache.glob(".*.part"))
    assert request.stored(cache, 1, build=False) is None
    start = time.monotonic()
    found = request.stored(cache, 1, build=True)
    assert time.monotonic() - start < 60 and list(found.trees[:300]) == request.encoded().trees[:300]
    assert len(found) == 4000 and not list(cache.glob(".*.part"))
