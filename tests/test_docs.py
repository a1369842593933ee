"""The documentation tells the truth: files, flags, scripts and record formats that it names are there."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from translations import NOTICE, english_of, is_older, pages

REPO = Path(__file__).resolve().parents[1]
PAGES = {
    "English": [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))],
    "Chinese": [REPO / "README.zh-CN.md", *sorted((REPO / "docs/zh").glob("*.md"))],
}
EVERY_PAGE = [*PAGES["English"], *PAGES["Chinese"], REPO / "CONTRIBUTING.md", REPO / "kernels/README.md"]


def documentation(language: str) -> str:
    """README and all pages as one text."""
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES[language])


def name_of(page: Path) -> str:
    return page.relative_to(REPO).as_posix()


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    headings = [re.sub(r"[`*]", "", heading.lower().strip()) for heading in re.findall(r"(?m)^#+ (.*)$", text)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def test_every_script_and_size_is_named():
    text = documentation("English")
    files = [*(REPO / "examples").rglob("*.*"), *(REPO / "src/keju").glob("[!_]*.py")]
    missing = [path.name for path in files if path.name not in text]
    missing += [path.stem for path in (REPO / "src/keju/models/sizes").glob("*.json") if f"`{path.stem}`" not in text]
    assert not missing


@pytest.mark.parametrize("language", PAGES)
def test_every_record_format_is_shown_and_each_example_is_read(language):
    from keju.records.formats import FORMATS, detect

    rows = [json.loads(line) for line in documentation(language).splitlines() if line.startswith("{")]
    shown = set()
    for row in rows:
        if "question" in row:  # a line of a benchmark, no record
            continue
        detect(row)
        shown.add(next(parse.__name__ for fields, parse, _ in FORMATS if fields <= row.keys()))
    assert shown == {parse.__name__ for _, parse, _ in FORMATS}


@pytest.mark.parametrize("language", PAGES)
def test_every_corpus_goes_from_raw_data_to_a_trained_model(language):
    """Each command of the block has as its inputs what an earlier one has written."""
    (block,) = (
        text for text in re.findall(r"```bash\n(.*?)```", documentation(language), re.S) if "CORPUS=couplet" in text
    )
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


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_files_and_modules_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    folders = "src|eval|data_prepare|kernels|tokenizers|tests|examples|docs"
    found = re.findall(rf"(?<![\w./$}}-])((?:{folders})/[\w./-]*)(<?)", re.sub(r"\]\([^)]*\)", "", text))
    # What stands before a placeholder such as <name> is a folder, and perhaps the beginning of a file name.
    paths = {path.rpartition("/")[0] if placeholder else path for path, placeholder in found}
    assert not sorted(path for path in paths if not (REPO / path).exists())
    for module in re.findall(r"python -m keju\.(\w+)", text):
        assert (REPO / "src/keju" / f"{module}.py").is_file()


@pytest.mark.parametrize("page", EVERY_PAGE, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_commands_that_are_named_are_commands():
    from keju.cli import find

    for language in PAGES:
        named = set(re.findall(r"(?<![\w.])keju ([a-z_]+)", documentation(language)))
        assert named and not [name for name in named if find(name) is None]


@pytest.mark.parametrize("language", PAGES)
def test_flags_that_are_named_exist(language):
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
    text = re.sub(r"git clone --depth", "", documentation(language))  # a flag of git
    named = set(re.findall(r"(?<![\w-])--([a-z]\w+)", text))
    assert named
    assert not sorted(flag for flag in named if flag not in known and flag.removeprefix("no_") not in known)


def test_a_chinese_page_that_is_older_says_so():
    """`python tests/translations.py` brings it about: whoever changes an English page need not write Chinese."""
    for page in pages():
        has_notice = NOTICE in page.read_text(encoding="utf-8")
        assert has_notice == is_older(page), f"{name_of(page)}: run python tests/translations.py"


def test_each_page_has_its_translation():
    generated = {"flags.md", "results.md"}
    for page in PAGES["English"]:
        if page.name not in generated:
            assert any(english_of(other) == page for other in pages()), page
    own, other = (PAGES[language][0].read_text(encoding="utf-8") for language in PAGES)
    assert "README.zh-CN.md" in own.split("##")[0] and "README.md" in other.split("##")[0]


def test_readme_is_a_front_door():
    for language in PAGES:
        assert len(PAGES[language][0].read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "LICENSE", "CHANGELOG.md"])
def test_front_matter_is_there(name):
    assert (REPO / name).stat().st_size > 200


@pytest.mark.parametrize("language", PAGES)
def test_it_is_stated_how_each_protocol_counts(language):
    from keju.eval.task import load_task, task_names

    stated = {}
    for line in documentation(language).splitlines():
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


@pytest.mark.parametrize("language", PAGES)
def test_the_task_that_is_shown_can_be_added(language, tmp_path, monkeypatch):
    from char_tokenizer import build_char_tokenizer
    from exam_takers import Indifferent

    from keju.encoding.encoder import Encoder
    from keju.eval import tasks
    from keju.eval.evaluation import evaluate

    (source,) = (
        block for block in re.findall(r"```python\n(.*?)```", documentation(language), re.S) if "TASK =" in block
    )
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
