"""The scripts of examples/ hand the right paths on; a stub takes the place of Python."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
# Says what it was asked to run; it fails for the stage of $FAILS. The environment that the scripts install is empty.
STUB = """#!/usr/bin/env bash
[ -z "${ARGUMENTS:-}" ] || printf '%s\\0' "$@" > "$ARGUMENTS"
case "$1 $2" in
"-c "*) echo "$STUB_PREFIX" ;;
"-m pip") [ -z "${PIP:-}" ] || touch "$PIP" ;;
"-m keju.$FAILS") exit 2 ;;
*) echo "$@" ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """Runs one from a copy of examples/ -> (exit code, what the stage was given, stderr)."""
    stub, repository = tmp_path / "bin/python", tmp_path / "repository"
    for folder in (stub.parent, repository, tmp_path / "data"):
        folder.mkdir()
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    for name in ("examples", "setup.py", "pyproject.toml", "constraints.txt"):
        (repository / name).symlink_to(REPO / name)
    mine = {"PATH": f"{stub.parent}:{os.environ['PATH']}", "STUB_PREFIX": str(tmp_path), "VIRTUAL_ENV": str(tmp_path)}

    def run(name: str, **variables: str) -> tuple[int, str, str]:
        environment = {"DATA_DIR": str(tmp_path / "data"), "FAILS": "none", **mine, **variables}
        command = ["bash", str(repository / "examples" / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, "".join(done.stdout.splitlines()[-1:]), done.stderr

    return run


def test_sft_from_random_weights_takes_the_vocabulary_of_the_data(script, tmp_path):
    data = tmp_path / "data"
    assert f"--tokenizer_name {data}/tokenizer " in script("train_sft.sh", MODEL="llama-tiny")[1]
    (data / "tokenizer-glm-tiny").mkdir()
    assert f"--tokenizer_name {data}/tokenizer-glm-tiny " in script("train_sft.sh", MODEL="glm-tiny")[1]
    assert "--tokenizer_name mine " in script("train_sft.sh", MODEL="llama-tiny", TOKENIZER="mine")[1]


def test_a_model_takes_its_own_tokenizer(script, tmp_path):
    folder = tmp_path / "my-tiny"
    folder.mkdir()
    for name, model in itertools.product(("train_sft.sh", "doctor.sh", "tokenize.sh"), (str(folder), "some/hub-name")):
        code, given, _ = script(name, MODEL=model)
        assert code == 0 and f"--model_name_or_path {model} " in given and "--tokenizer_name" not in given


def test_where_the_stage_before_fails_it_is_said_how_to_do_without_it(script):
    code, _, error = script("train_reward.sh", FAILS="train_sft", MODEL="")
    assert code == 2 and "pretrain.sh" not in error
    assert "examples/train_sft.sh failed (see above); MODEL=FOLDER starts from a model that is there" in error


HOSTILE = [
    *("a b", 'it\'s "mine"', "$(touch pwned)", "`touch pwned`", "; touch pwned", "a\nb", "*", "../up", "-x", "--help"),
    *("中文 [1]（新）", "$HOME", "~", "\\"),
]
SCRIPTS = ("pretrain", "train_sft", "train_dpo", "train_reward", "eval_pretrain", "pred_pretrain", "doctor", "tokenize")


@pytest.mark.parametrize("name", SCRIPTS)
def test_names_are_handed_on_as_they_are(script, tmp_path, name):
    given = tmp_path / "given"
    variables = {"ARGUMENTS": str(given), "TOKENIZER": "tokenizer"}
    for hostile in HOSTILE:
        data = tmp_path / "data" / f"in {hostile}".replace("/", " ")
        data.mkdir(exist_ok=True)
        values = {"MODEL": hostile, "DATA_DIR": str(data), "OUTPUT_DIR": hostile}
        code, _, error = script(f"{name}.sh", **variables, **values)
        arguments = given.read_text(encoding="utf-8").split("\0")
        assert code == 0 and not error
        for flag, value in zip(("--model_name_or_path", "--data_dir"), (hostile, str(data)), strict=True):
            assert arguments[arguments.index(flag) + 1] == value
        if "--output_dir" in arguments:
            assert arguments[arguments.index("--output_dir") + 1] == hostile
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


@pytest.mark.parametrize("name", ["HOSTFILE", "NUM_GPUS"])
def test_grpo_is_not_run_in_one_process_where_several_are_asked_for(script, name):
    code, _, error = script("train_grpo.sh", **{name: "4"})
    assert (code, error) == (2, f"error: {name}=4: GRPO runs in one process for now\n")


def test_extras_are_installed_once_and_no_other_one_takes_their_place(script, tmp_path):
    """Once for each state of pyproject.toml and constraints.txt; `dev` has all others in it, `test` all but docs."""

    def installed(*extras: str) -> bool:
        given = tmp_path / "given"
        given.unlink(missing_ok=True)
        code, _, error = script("merge.sh", MODEL="m", KEJU_EXTRAS=",".join(extras), PIP=str(given))
        assert code == 0 and not error
        return given.exists()

    assert installed() and not installed()
    assert installed("eval") and not installed("eval") and installed("eval", "rl")
    assert installed("test") and not installed("data", "cluster", "test")
    assert installed("dev") and not installed("docs", "test", "dev", "all")
