"""From real raw files to records through the stage's command line: splits, wrong answers, resuming, any number of
processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from keju import prepare_data
from keju.data_prepare.pipeline import engine, plan, stages
from keju.data_prepare.pipeline.rows import kept_apart
from keju.records.opening import numbered_lines
from keju.records.reading import read_records
from keju.records.record import RankedRecord
from keju.training.launch import run_guarded

RAW = Path(__file__).resolve().parents[4] / "shared" / "data" / "raw"
pytestmark = pytest.mark.skipif(not RAW.is_dir(), reason="../shared/data/raw is not there")
CLASSICAL, COUPLET = RAW / "Classical-Modern", RAW / "couplet"
DATATROVE = ("--executor", "local", "--executor_settings", '{"workers": 2}')
SMALL = ("--vocab_size", "0", "--dev_share", "0.1", "--test_share", "0.1")


def run(monkeypatch, *flags) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, flags)])
    return run_guarded(prepare_data.main)


def prepare(monkeypatch, corpus: str, raw: Path, output: Path, *flags) -> int:
    return run(monkeypatch, "--corpus", corpus, "--raw_dir", raw, "--output_dir", output, *SMALL, *flags)


@pytest.fixture
def many_pieces(monkeypatch):
    """The corpora here are small: pieces, buckets, shards and their parts are made small, too."""
    monkeypatch.setattr(plan, "PIECE_BYTES", (20_000, 20_000))
    monkeypatch.setattr(plan, "BUCKET_BYTES", 200_000)
    monkeypatch.setattr(plan, "SHARD_BYTES", 300_000)
    monkeypatch.setattr(plan, "PART_BYTES", 100_000)


@pytest.fixture(scope="module")
def classical(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "classical"
    with pytest.MonkeyPatch.context() as patch:
        assert prepare(patch, "classical_modern", CLASSICAL, folder, "--num_workers", "1") == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".jsonl" in path.name}


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for _, line in numbered_lines(path)]


def rows(folder: Path, name: str) -> list[dict]:
    found = [path for path in sorted(folder.iterdir()) if path.name.startswith(name)]
    return [json.loads(line) for path in found for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_a_record_or_in_the_report(classical):
    report = json.loads((classical / "report.json").read_text())
    total = sum(len(read_records(path, kinds=(RankedRecord,))) for path in classical.glob("*.jsonl"))
    assert total == sum(report["rows"].values()) and total > 15_000
    read, *later = report["steps"]
    assert read["rows_out"] == 16_000  # both ways of 8,000 pairs
    for before, after in zip([read, *later], later, strict=False):
        assert before["rows_out"] == after["rows_in"]
    assert later[-1]["rows_out"] == total
    dropped = sum(found["rows"] for step in later for found in step["dropped"].values())
    assert dropped == read["rows_out"] - total


def test_splits_share_no_text_and_have_their_share(classical):
    texts, counts = {}, {}
    for split in ("ranked_train", "prompts_train", "ranked_dev", "ranked_test"):
        found = rows(classical, split)
        counts[split] = len(found)
        texts[split] = {text for row in found for _, text in kept_apart(row)}
    names = list(texts)
    for index, name in enumerate(names):
        for other in names[:index]:
            assert not texts[name] & texts[other], (name, other)
    total = sum(counts.values())
    for name, share in (("prompts_train", 0.1), ("ranked_dev", 0.1), ("ranked_test", 0.1)):
        assert 0.4 * share < counts[name] / total < 1.8 * share


def test_wrong_answers_are_of_the_right_book_and_language(classical):
    pairs = {}
    for book in (CLASSICAL / "bitext").iterdir():
        lines = book.read_text(encoding="utf-8").splitlines()
        for line in lines:
            name, _, text = line.partition("：")
            pairs.setdefault((name, text.strip()), set()).add(book.name)
    seen = Counter()
    for row in rows(classical, "ranked_train"):
        language = "现代文" if row["prompt"].startswith("把下面的文言文") else "古文"
        right, *wrong = row["answers"]
        assert right["score"] == 1
        assert len({answer["answer"] for answer in row["answers"]}) == len(row["answers"])
        for answer in wrong:
            seen[answer["score"]] += 1
            if (language, answer["answer"]) not in pairs:  # cleaning has changed it
                seen["changed"] += 1
                continue
            books = pairs[language, answer["answer"]]
            assert (row["source"] in books) if answer["score"] == 0 else (books != {row["source"]})
    assert seen[0] == pytest.approx(2 * len(rows(classical, "ranked_train")), rel=0.01)
    assert seen[-1] == seen[0] and seen["changed"] < 0.01 * seen[0]
    # No answer is given as a wrong one much more often than others: four times on average.
    train = rows(classical, "ranked_train")
    own = Counter(row["answers"][0]["answer"] for row in train)  # several rows may have the same
    given = Counter(answer["answer"] for row in train for answer in row["answers"][1:])
    counts = sorted(count / own[text] for text, count in given.items())
    assert counts[int(0.98 * len(counts))] <= 7 and counts[-1] <= 16


@pytest.mark.parametrize("flags", [("--num_workers", 2), pytest.param(DATATROVE, marks=pytest.mark.slow)])
def test_any_number_of_processes_and_any_engine_gives_the_same_bytes(many_pieces, monkeypatch, tmp_path, flags):
    for name, more in (("one", ("--num_workers", 1)), ("others", flags)):
        assert prepare(monkeypatch, "couplet", COUPLET, tmp_path / name, "--compress", *more) == 0
    expected = contents(tmp_path / "one")
    assert len(expected) >= 4 and all(name.endswith(".jsonl.zst") for name in expected)
    assert contents(tmp_path / "others") == expected
    assert not list(tmp_path.glob(".*work"))


def test_a_file_in_parts_has_the_same_rows_in_the_same_order(monkeypatch, tmp_path):
    for name, num_bytes in (("whole", 1 << 30), ("parts", 50_000)):
        monkeypatch.setattr(plan, "PART_BYTES", num_bytes)
        assert prepare(monkeypatch, "couplet", COUPLET, tmp_path / name, "--num_workers", "1", "--compress") == 0
    whole, parts = (
        [(row["prompt"], row["answers"][0]) for row in read_rows(tmp_path / name / "ranked_train.jsonl.zst")]
        for name in ("whole", "parts")
    )
    assert whole == parts and len(whole) > 2500
    # Each of the parts draws its wrong answers from its own rows.
    assert contents(tmp_path / "whole") != contents(tmp_path / "parts")


def test_another_seed_gives_others_and_the_same_command_nothing_new(classical, monkeypatch, tmp_path, capsys):
    before = contents(classical)
    assert prepare(monkeypatch, "classical_modern", CLASSICAL, classical, "--num_workers", "1") == 0
    assert "nothing to do" in capsys.readouterr().out and contents(classical) == before
    assert prepare(monkeypatch, "classical_modern", CLASSICAL, tmp_path / "other", "--seed", "7") == 0
    assert contents(tmp_path / "other") != before
    assert prepare(monkeypatch, "classical_modern", CLASSICAL, classical, "--seed", "7") == 2
    assert contents(classical) == before


def test_a_run_that_was_interrupted_goes_on(many_pieces, monkeypatch, tmp_path, capsys):
    assert prepare(monkeypatch, "couplet", COUPLET, tmp_path / "whole", "--num_workers", "1") == 0
    done, run_task = [], engine.run_task

    def stops(a_plan: plan.Plan, stage: str, number: int, advance) -> None:
        if len(done) == 12:
            raise KeyboardInterrupt
        done.append((stage, number))
        run_task(a_plan, stage, number, advance)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_task", stops)
        assert prepare(patch, "couplet", COUPLET, tmp_path / "again", "--num_workers", "1") == 130
    assert not (tmp_path / "again").exists()
    again = []

    def counted(a_plan: plan.Plan, stage: str, number: int, advance) -> None:
        again.append((stage, number))
        run_task(a_plan, stage, number, advance)

    monkeypatch.setattr(engine, "run_task", counted)
    assert prepare(monkeypatch, "couplet", COUPLET, tmp_path / "again", "--num_workers", "1") == 0
    assert "goes on" in capsys.readouterr().out
    assert not set(done) & set(again)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("in.txt", "out.txt"):
        lines = (COUPLET / "test" / name).read_text(encoding="utf-8")
        (raw / name).write_text(lines * 60, encoding="utf-8")
    command = [sys.executable, "-m", "keju.prepare_data", "--corpus", "couplet", "--raw_dir", str(raw), *SMALL]
    subprocess.run([*command, "--output_dir", str(tmp_path / "whole")], check=True, capture_output=True)
    killed = [*command, "--output_dir", str(tmp_path / "killed")]
    for stage in ("read", "deal", "write"):
        process = subprocess.Popen(killed, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        marks = tmp_path / ".killed.work" / "done" / stage
        while process.poll() is None and not (marks.is_dir() and any(marks.iterdir())):
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert len(workers) >= 2 and not alive
        assert not (tmp_path / "killed").exists()
    subprocess.run(killed, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_mistakes_are_one_line(monkeypatch, tmp_path, capsys):
    cases = {
        ("couplet", tmp_path / "nowhere"): "does not exist. To get the raw data: wget",
        ("couplet", CLASSICAL): "nothing of this corpus in this folder; expected in.txt",
        ("no_such", COUPLET): "--corpus: 'no_such' is unknown; there are:",
    }
    for (corpus, raw), expected in cases.items():
        assert prepare(monkeypatch, corpus, raw, tmp_path / "out") == 2
        said = capsys.readouterr().err.strip()
        assert expected in said and "\n" not in said
    assert run(monkeypatch, "--corpus", "couplet", "--output_dir", tmp_path / "out") == 2
    assert "--raw_dir: --corpus couplet needs the folder of its raw data" in capsys.readouterr().err
    assert prepare(monkeypatch, "couplet", COUPLET, tmp_path / "out", "--prompts_share", "0.9") == 2
    assert not (tmp_path / "out").exists()


def test_a_bad_line_is_named_from_any_process(many_pieces, monkeypatch, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(COUPLET / "test", raw, copy_function=shutil.copyfile)
    lines = (raw / "in.txt").read_text(encoding="utf-8").split("\n")
    lines[2999] = lines[2999] + "又 又"
    (raw / "in.txt").write_text("\n".join(lines), encoding="utf-8")
    for workers in (1, 2):
        output = tmp_path / f"out{workers}"
        assert prepare(monkeypatch, "couplet", raw, output, "--on_bad_line", "error", "--num_workers", workers) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(said) == 1 and "in.txt:3000: the first line has" in said[0]
        assert not output.exists()
    assert prepare(monkeypatch, "couplet", raw, tmp_path / "skipped") == 0
    read = json.loads((tmp_path / "skipped" / "report.json").read_text())["steps"][0]
    assert read["rows_in"] == read["rows_out"] + 1 and len(read["dropped"]) == 1


@pytest.mark.parametrize("stage", ["read", "write"])
def test_a_full_disk_is_said_and_nothing_is_lost(many_pieces, monkeypatch, tmp_path, capsys, stage):
    real = getattr(stages, stage)

    def full(*args, **more):
        if args[1] == 1:
            raise OSError(28, "No space left on device", "somewhere")
        return real(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, full)
        assert prepare(patch, "couplet", COUPLET, tmp_path / "out", "--num_workers", "1") == 1
    said = capsys.readouterr().err
    assert f"The disk is full: {tmp_path / 'out'} could" in said or "The disk is full: somewhere could" in said
    assert "--output_dir <folder on another disk>" in said and "the same command again" in said
    assert "--save_total_limit" not in said and not (tmp_path / "out").exists()
    assert prepare(monkeypatch, "couplet", COUPLET, tmp_path / "out", "--num_workers", "1") == 0
    assert prepare(monkeypatch, "couplet", COUPLET, tmp_path / "whole", "--num_workers", "1") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


MEASURED = """
import sys
from keju import prepare_data
from keju.training.launch import run_guarded
assert run_guarded(prepare_data.main) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak of one process that does everything, with 20,000 couplets and with eight times as many."""
    peaks = []
    for times in (5, 40):
        raw, output = tmp_path / f"raw{times}", tmp_path / f"out{times}"
        raw.mkdir()
        for name in ("in.txt", "out.txt"):
            lines = (COUPLET / "test" / name).read_text(encoding="utf-8").splitlines()
            # Each time with other words, so that they are no duplicates.
            changed = (
                f"{chr(0x4E00 + time)} {line} {chr(0x5E00 + time)} {line[:5]}\n"
                for time in range(times)
                for line in lines
            )
            (raw / name).write_text("".join(changed), encoding="utf-8")
        flags = ["--corpus", "couplet", "--raw_dir", raw, "--output_dir", output, "--num_workers", 1, *SMALL]
        command = [sys.executable, "-c", MEASURED, *map(str, flags)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]))
        assert len(rows(output, "ranked_train")) > 3000 * times * 0.8
    assert peaks[1] < peaks[0] + 200_000, (
        peaks
    )  # KiB; pieces, buckets and shards have their full size only in the larger one
