"""Names of sizes, tasks, templates and files that are commands, paths out of a folder, or no names at all."""

from __future__ import annotations

import sys

import pytest
from char_tokenizer import build_char_tokenizer

from keju import eval_pretrain, tokenize_data
from keju.training.launch import run_guarded

NAMES = ["a b", "it's", "$(touch pwned)", "../../etc/passwd", "-x", "--help", "os", "a\nb", "", "a" * 300, "*", "a\0b"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_char_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "flag", ["--model_name_or_path", "--tokenizer_name", "--chat_template", "--train_filename", "--data_dir", "--tasks"]
)
def test_one_line_and_nothing_is_made(monkeypatch, tmp_path, capsys, tokenizer, flag, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stage = eval_pretrain if flag == "--tasks" else tokenize_data
    given = {"--model_name_or_path": tokenizer, "--data_dir": "."}
    given |= {"--output_dir": "out"} if stage is eval_pretrain else {}
    argv = [f"{key}={value}" for key, value in (given | {flag: name}).items()]
    monkeypatch.setattr(sys, "argv", ["stage.py", *argv])
    assert run_guarded(stage.main) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and said.startswith("error: "), said
    if name.isprintable() and name:  # an empty file name is the folder
        assert flag in said or name[:100] in said, said
    assert list(tmp_path.iterdir()) == []
