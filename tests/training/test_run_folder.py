from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass

import pytest

from keju.records.journal import Journal
from keju.training.checkpoints import checkpoint_aside
from keju.training.run_folder import RunFolder, current_run, is_finished, is_run


@dataclass
class Settings:
    learning_rate: float = 0.1
    hub_token: str = "secret"


def open_run(path, **options):
    return RunFolder(path, "sft", arguments=[Settings()], argv=["--learning_rate", "0.1"], **options)


def train(path, *, steps=2, checkpoints=(), **options):
    run = open_run(path, **options)
    for step in range(1, steps + 1):
        run.log_metrics({"step": step, "loss": 1.0 / step, "num_tokens": 10 * step, "elapsed": float(step)})
    for step in checkpoints:
        with checkpoint_aside(path, step, keep=None) as aside:
            (aside / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return run


def test_a_run_leaves_arguments_metrics_log_and_summary(tmp_path):
    run = train(tmp_path / "run")
    print("said on stdout")
    print("said on stderr", file=sys.stderr)
    summary = run.finish(heldout_accuracy=0.75)
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    assert args["arguments"] == {"learning_rate": 0.1, "hub_token": "<hidden>"}
    assert args["stage"] == "sft" and args["versions"]["torch"] and args["machine"]["cpu_cores"] >= 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["finished"] and summary["first_loss"] == 1.0 and summary["last_loss"] == 0.5
    assert summary["steps"] == 2 and summary["tokens"] == 20 and summary["tokens_per_second"] == 10.0
    assert summary["heldout_accuracy"] == 0.75 and summary["seconds"] >= 0
    assert (tmp_path / "run" / "sft.log").read_text() == "said on stdout\nsaid on stderr\n"
    assert current_run() is None


def test_secrets_on_the_command_line_are_hidden(tmp_path):
    RunFolder(tmp_path, "sft", argv=["--hub_token", "s1", "--hub-token=s2", "--seed", "1"]).close()
    text = (tmp_path / "args.json").read_text()
    assert "s1" not in json.loads(text)["argv"] and "s2" not in text


def test_metrics_stay_json(tmp_path):
    run = open_run(tmp_path)
    run.log_metrics({"step": 1, "loss": float("nan")})
    run.close()
    assert list(Journal(run.metrics_path).read()) == [{"step": 1, "loss": None}]


def test_read_metrics_forgives_only_a_cut_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": ')
    assert list(Journal(path).read()) == [{"step": 1}]
    path.write_text('{"step": \n{"step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:1: not JSON"):
        list(Journal(path).read())


def test_refuses_a_folder_with_another_run(tmp_path):
    train(tmp_path).finish()
    with pytest.raises(ValueError, match="already holds a finished run .*--overwrite_output_dir$"):
        open_run(tmp_path)
    assert len(list(Journal(tmp_path / "metrics.jsonl").read())) == 2


def test_refuses_foreign_files_even_with_overwrite(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not of a run .such as thesis.tex"):
            open_run(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_hidden_folder_of_somebody_else_stays(tmp_path):
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "thesis.tex").write_text("years of work")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="not of a run"):
        open_run(tmp_path, overwrite=True)
    assert (tmp_path / ".new" / "thesis.tex").read_text() == "years of work"


def test_refuses_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="--output_dir: .* is a file"):
        open_run(tmp_path / "out")


class TestOverwrite:
    def test_the_old_run_stays_until_the_new_one_has_begun(self, tmp_path):
        train(tmp_path, checkpoints=[1]).finish()
        (tmp_path / "model.safetensors").write_text("weights")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        run = open_run(tmp_path, overwrite=True)
        assert is_finished(tmp_path)
        run.discard_if_untouched()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert [path.name for path in tmp_path.glob(".*")] == []

    def test_then_it_goes_and_the_log_goes_on(self, tmp_path):
        train(tmp_path, checkpoints=[1]).finish()
        run = open_run(tmp_path, overwrite=True)
        print("before")
        (tmp_path / "tracked").mkdir()  # by something that does not wait
        run.begin()
        print("after")
        run.begin()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["args.json", "sft.log", "tracked"]
        run.close()
        assert (tmp_path / "sft.log").read_text() == "before\nafter\n"

    @pytest.mark.parametrize("write", ["metrics", "summary"])
    def test_figures_begin_it(self, tmp_path, write):
        train(tmp_path, steps=5).finish()
        run = open_run(tmp_path, overwrite=True)
        if write == "metrics":
            run.log_metrics({"step": 1})
            run.close()
            assert list(Journal(tmp_path / "metrics.jsonl").read()) == [{"step": 1}]
        else:
            run.finish()
            assert not (tmp_path / "metrics.jsonl").exists() and is_finished(tmp_path)

    def test_a_run_that_died_before_it_began_leaves_the_old_one_and_its_log(self, tmp_path):
        train(tmp_path).finish()
        run = open_run(tmp_path, overwrite=True)
        run.close()
        assert is_finished(tmp_path) and run.log_path.is_file()
        open_run(tmp_path, overwrite=True).finish()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["args.json", "sft.log", "summary.json"]

    def test_a_kill_in_the_middle_of_the_change_is_not_the_end(self, tmp_path):
        train(tmp_path, checkpoints=[1]).finish()
        run = open_run(tmp_path, overwrite=True)
        run._terminal.close()
        (tmp_path / "summary.json").unlink()
        (tmp_path / "metrics.jsonl").unlink()
        open_run(tmp_path, overwrite=True).finish()
        assert is_finished(tmp_path)

    def test_two_new_runs_cannot_wait_for_one_place(self, tmp_path):
        train(tmp_path).finish()
        run = open_run(tmp_path, overwrite=True)
        with pytest.raises(ValueError, match="another process is writing"):
            open_run(tmp_path, overwrite=True)
        run.close()

    @pytest.mark.parametrize("inner", ["", "checkpoint-1", "checkpoint-1/model.safetensors"])
    @pytest.mark.parametrize("as_link", [False, True])
    def test_what_the_run_starts_from_is_not_deleted(self, tmp_path, inner, as_link):
        home = tmp_path / "runs"
        train(home, checkpoints=[1]).finish()
        (home / "checkpoint-1" / "model.safetensors").write_text("weights")
        source = home / inner
        if as_link:
            source = tmp_path / "link"
            source.symlink_to(home / inner)
        with pytest.raises(ValueError, match="--overwrite_output_dir: it would delete --model_name_or_path"):
            RunFolder(home, "sft", arguments=[Start(str(source))], argv=[], overwrite=True)
        assert is_finished(home) and not (home / ".new").exists()


@dataclass
class Start:
    model_name_or_path: str
    run_name: str = "x" * 5000


def test_overwrite_keeps_runs_inside(tmp_path):
    train(tmp_path).finish()
    train(tmp_path / "inner" / "dpo").finish()
    with pytest.raises(ValueError, match="also holds the run .*dpo"):
        open_run(tmp_path, overwrite=True)
    assert is_finished(tmp_path / "inner" / "dpo") and is_finished(tmp_path)


def test_a_run_that_died_before_its_first_step_is_replaced(tmp_path):
    open_run(tmp_path).close()
    open_run(tmp_path).close()


def test_resume_takes_the_newest_whole_checkpoint_and_rewinds_metrics(tmp_path):
    train(tmp_path, steps=5, checkpoints=[2, 4]).close()
    (tmp_path / "checkpoint-5").mkdir()  # killed while saving
    (tmp_path / "checkpoint-5" / "model.safetensors").write_text("half")
    run = open_run(tmp_path, resume="auto")
    assert run.checkpoint == tmp_path / "checkpoint-4"
    assert [row["step"] for row in Journal(run.metrics_path).read()] == [1, 2, 3, 4]
    run.close()
    assert json.loads((tmp_path / "args.json").read_text())["resumed_from"].endswith("checkpoint-4")


def test_resume_auto_starts_from_the_beginning_where_nothing_is(tmp_path):
    run = open_run(tmp_path / "new", resume="auto")
    assert run.checkpoint is None
    run.close()


def test_what_a_killed_run_was_writing_goes(tmp_path):
    train(tmp_path, checkpoints=[1]).close()
    for name in (".checkpoint-2.00000002.part", ".checkpoint-1.89abcdef.part", ".files.0123abcd.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    (tmp_path / ".metrics.jsonl.0123abcd.part").write_text("")
    (tmp_path / ".mine").write_text("")
    open_run(tmp_path, resume="auto").close()
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".mine"]


def test_resume_from_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="--resume_from_checkpoint: .* not a whole checkpoint"):
        open_run(tmp_path / "run", resume=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_is_finished_asks_for_the_same_arguments(tmp_path):
    assert not is_finished(tmp_path) and not is_run(tmp_path)
    run = train(tmp_path)
    assert is_run(tmp_path) and not is_finished(tmp_path)
    run.finish()
    assert is_finished(tmp_path)
    assert is_finished(tmp_path, ["--learning_rate", "0.1"]) and not is_finished(tmp_path, ["--learning_rate", "0.2"])


def test_two_processes_cannot_share_a_folder(tmp_path):
    run = open_run(tmp_path)
    try:
        # The lock belongs to the open file, so that a second opening stands for a second process.
        with pytest.raises(ValueError, match="--output_dir: another process is writing"):
            open_run(tmp_path, overwrite=True)
    finally:
        run.close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()

    def read_only(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    for name in ("there", "new"):
        with pytest.raises(ValueError, match=f"--output_dir: .*{name} cannot be written .Read-only file system."):
            open_run(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_is_removed_is_made_again(tmp_path, capsys):
    run = train(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    run.log_metrics({"step": 3, "loss": 0.5})
    run.log_metrics({"step": 4, "loss": 0.4})
    run.finish()
    assert "was removed while the run goes on" in capsys.readouterr().err
    assert is_finished(tmp_path / "run") and [row["step"] for row in Journal(run.metrics_path).read()] == [3, 4]


def test_a_clock_that_jumps_changes_no_duration(tmp_path, monkeypatch):
    run = train(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= run.finish()["seconds"] < 60


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = open_run(tmp_path / "run")
    run.log_metrics({"step": 1})
    run.finish()
    assert not (tmp_path / "run").exists()


def test_full_disk_leaves_the_old_summary(tmp_path, monkeypatch):
    run = train(tmp_path)
    (tmp_path / "summary.json").write_text('{"old": 1}')

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.finish()
    run.close()
    assert (tmp_path / "summary.json").read_text() == '{"old": 1}'
    assert not list(tmp_path.glob(".*part"))


def test_discard_removes_only_what_opening_wrote(tmp_path):
    run = open_run(tmp_path / "new")
    run.discard_if_untouched()
    assert not (tmp_path / "new").exists()
    run = train(tmp_path / "kept")
    run.discard_if_untouched()
    assert is_run(tmp_path / "kept")
