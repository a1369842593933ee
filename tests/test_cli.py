"""The command `keju`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stage_help import SCRIPTS, help_of

import keju
from keju.cli import HELP, main, overview


def run(*arguments: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "keju", *arguments], capture_output=True, text=True, **settings)


@pytest.mark.parametrize("module", SCRIPTS)
def test_help_that_was_made_ahead_is_that_of_the_stage(module):
    path = HELP / f"{module}.txt"
    assert path.read_text(encoding="utf-8") == help_of(module), "python tests/stage_help.py makes it anew"


def test_no_help_is_left_of_a_stage_that_is_gone():
    assert {path.stem for path in HELP.iterdir()} == set(SCRIPTS)


def test_help_imports_neither_torch_nor_transformers():
    code = """
import sys
from keju.cli import main
sys.argv = ["keju", *sys.argv[1:]]
try:
    main()
finally:
    print(*sys.modules.keys() & {"torch", "transformers", "numpy"}, file=sys.stderr)
"""
    for arguments in (["sft", "--help"], ["train_sft", "--help"], ["--help"], []):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr.strip() == ""
        assert done.stdout == (HELP / "train_sft.txt").read_text() if len(arguments) == 2 else overview() + "\n"


def test_a_pipe_that_is_closed_ends_it_quietly():
    code = f"{sys.executable} -m keju sft --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[1:] == ["0"] and not done.stderr


def test_version_and_mistakes():
    assert run("--version").stdout == f"keju {keju.__version__}\n"
    done = run("stf", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command stf; did you mean sft?\n"


def test_a_command_is_its_stage(tmp_path):
    """With its flags, its exit codes, and its name in messages."""
    record = {"prompt": "问", "answers": [{"answer": "答", "score": 1}]}
    (tmp_path / "ranked.jsonl").write_text(json.dumps(record), encoding="utf-8")
    flags = ["--input_files", "ranked.jsonl", "--layout"]
    done = run("export", *flags, "alpaca", "--output_file", "alpaca.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "alpaca.jsonl").read_text(encoding="utf-8"))["output"] == "答"
    done = run("export", *flags, "alpaca", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --output_file must be given (as a flag or in the YAML file)\n")


def test_a_package_of_an_extra_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "keju.rl.grpo_trainer", raising=False)
    monkeypatch.setattr(sys, "argv", ["keju"])
    with pytest.raises(SystemExit) as ended:
        main(["grpo"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the package trl is not installed: pip install 'keju[rl]'\n"


def test_console_script_is_declared():
    from importlib.metadata import distribution

    (script,) = distribution("keju").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("keju", "keju.cli:main")
    assert Path(keju.__file__).with_name("py.typed").exists()
