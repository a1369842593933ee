"""The READMEs tell the truth: files, flags, scripts and record formats that they name are there."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")


def readme(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", READMES)
def test_readme_names_every_script_and_size(name):
    text = readme(name)
    files = [*(REPO / "examples").rglob("*.*"), *(REPO / "src/keju").glob("[!_]*.py")]
    missing = [path.name for path in files if path.name not in text]
    missing += [path.stem for path in (REPO / "src/keju/models/sizes").glob("*.json") if f"`{path.stem}`" not in text]
    assert not missing


@pytest.mark.parametrize("name", READMES)
def test_readme_shows_every_record_format_and_each_example_is_read(name):
    from keju.records.formats import FORMATS, detect

    rows = [json.loads(line) for line in readme(name).splitlines() if line.startswith("{")]
    shown = set()
    for row in rows:
        if "question" in row:  # a line of a benchmark, no record
            continue
        detect(row)
        shown.add(next(parse.__name__ for fields, parse, _ in FORMATS if fields <= row.keys()))
    assert shown == {parse.__name__ for _, parse, _ in FORMATS}


@pytest.mark.parametrize("name", READMES)
def test_every_corpus_goes_from_raw_data_to_a_trained_model(name):
    """Each command of the block has as its inputs what an earlier one has written."""
    (block,) = (text for text in re.findall(r"```bash\n(.*?)```", readme(name), re.S) if "CORPUS=couplet" in text)
    made, trained = {"llama-tiny"}, set()
    for command in re.sub(r"\\\n\s*", "", block).splitlines():
        found = re.search(r"bash examples/(\w+)\.sh", command.partition("#")[0])
        if not found:
            continue
        variables = dict(re.findall(r"(\w+)=(\S+)", command))
        if found[1] == "data_prepare":
            corpus = variables.get("CORPUS", "idiom")
            made.add(f"runs/data/{corpus}")
            continue
        assert variables.get("DATA_DIR", "runs/data/idiom") == f"runs/data/{corpus}"
        inputs = {variables[key] for key in ("DATA_DIR", "MODEL", "REWARD_MODEL") if key in variables}
        assert inputs <= made, command
        # Where another data set than the default one is used, the model of the stage before must be said.
        assert corpus == "idiom" or found[1] == "pretrain" or "MODEL" in variables, command
        assert corpus == "idiom" or variables["OUTPUT_DIR"] not in made, command
        made.add(variables.get("OUTPUT_DIR", ""))
        trained.add(corpus)
    assert trained == {path.stem for path in (REPO / "data_prepare/corpora").glob("[!_]*.py")}


@pytest.mark.parametrize("name", READMES)
def test_readme_names_only_files_that_are_there(name):
    text = readme(name)
    folders = "src|eval|data_prepare|kernels|tokenizers|tests|examples"
    found = re.findall(rf"(?<![\w./$}}-])((?:{folders})/[\w./-]*)(<?)", text)
    # What stands before a placeholder such as <name> is a folder, and perhaps the beginning of a file name.
    paths = {path.rpartition("/")[0] if placeholder else path for path, placeholder in found}
    paths |= {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert paths
    assert not sorted(path for path in paths if not (REPO / path).exists())
    for module in re.findall(r"python -m keju\.(\w+)", text):
        assert (REPO / "src/keju" / f"{module}.py").is_file()


@pytest.mark.parametrize("name", READMES)
def test_readme_names_only_flags_that_exist(name):
    from transformers import TrainingArguments

    known = {"help", "help_all", "config", *TrainingArguments.__dataclass_fields__}
    for path in [*(REPO / "src").rglob("*.py"), REPO / "data_prepare/cleaning/settings.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                known |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
    # Options of the benchmarks are keywords of `arguments(...)`, or argparse's.
    for path in (REPO / "tests/bench").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        known |= set(re.findall(r"(\w+)[\"']?[=:] ?\d", text)) | set(re.findall(r'add_argument\("--(\w+)"', text))
    text = re.sub(r"git clone --depth", "", readme(name))  # a flag of git
    named = set(re.findall(r"(?<![\w-])--([a-z]\w+)", text))
    assert named
    assert not sorted(flag for flag in named if flag not in known and flag.removeprefix("no_") not in known)


def test_readmes_have_the_same_sections_and_link_to_each_other():
    own, other = (readme(name) for name in READMES)
    assert "README.zh-CN.md" in own.split("##")[0] and "README.md" in other.split("##")[0]
    levels = [[len(mark) for mark in re.findall(r"(?m)^(#{1,3}) ", text)] for text in (own, other)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "LICENSE", "CHANGELOG.md"])
def test_front_matter_is_there(name):
    assert (REPO / name).stat().st_size > 200


@pytest.mark.parametrize("name", READMES)
def test_readme_states_how_each_protocol_counts(name):
    from keju.eval.task import load_task, task_names

    stated = {}
    for line in readme(name).splitlines():
        cells = [re.findall(r"`(\w+)`", cell) for cell in line.strip("|").split("|")]
        if len(cells) == 5 and len(cells[2]) == 1 and cells[2][0] in ("letter", "text", "template", "written"):
            rows = [(task, protocol) for task in cells[0] for protocol in cells[1]]
            assert not stated.keys() & set(rows)
            stated |= dict.fromkeys(rows, tuple(cell[0] for cell in cells[2:]))
    assert stated == {
        (task, protocol): (rules.scored, rules.metric, rules.average)
        for task in task_names()
        for protocol, rules in load_task(task).protocols.items()
    }


@pytest.mark.parametrize("name", READMES)
def test_the_task_that_readme_shows_can_be_added(name, tmp_path, monkeypatch):
    from char_tokenizer import build_char_tokenizer
    from exam_takers import Indifferent

    from keju.encoding.encoder import Encoder
    from keju.eval import tasks
    from keju.eval.evaluation import evaluate

    (source,) = (block for block in re.findall(r"```python\n(.*?)```", readme(name), re.S) if "TASK =" in block)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/capitals.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])
    rows = [
        {"country": "甲", "cities": ["乙", "丙"], "capital": "丙"},
        {"country": "丁", "cities": ["乙"], "capital": "戊"},
    ]
    for split in ("test", "train"):
        text = "\n".join(json.dumps(row) for row in rows).replace(
            "\\u7532", "\\u5df1" if split == "train" else "\\u7532"
        )
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    encoder = Encoder(build_char_tokenizer("甲乙丙丁戊己的首都是"), 64)
    settings = {"num_shots": 1, "max_length": 64}
    with pytest.raises(ValueError, match='test.jsonl:2: "capital" is none of the cities'):
        evaluate("capitals", Indifferent(), encoder, tmp_path, **settings)
    result = evaluate("capitals", Indifferent(), encoder, tmp_path, on_bad_row="skip", **settings)
    assert result.summary["accuracy"] == 0.5 and "己的首都是丙" in "".join(result.example.split())
