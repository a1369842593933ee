"""Checkpoints are whole or not there; damage is named; the last good one is never deleted."""

from __future__ import annotations

import errno
import json

import pytest

from keju.training import checkpoints as checkpoint_files
from keju.training.checkpoints import (
    MANIFEST,
    check_checkpoint,
    checkpoint_aside,
    checkpoints,
    damage,
    newest_whole,
    step_of,
)


def write(run, step, *, keep=None, spare=(), size=1000):
    with checkpoint_aside(run, step, keep=keep, spare=spare) as aside:
        (aside / "actor").mkdir()
        (aside / "actor" / "model.safetensors").write_bytes(bytes([step]) * size)
        (aside / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return run / f"checkpoint-{step}"


def names(run) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_a_checkpoint_is_listed_with_size_and_hash(tmp_path):
    folder = write(tmp_path, 7)
    listed = json.loads((folder / MANIFEST).read_text())
    assert listed["num_processes"] == 1
    assert listed["files"].keys() == {"actor/model.safetensors", "trainer_state.json"}
    assert listed["files"]["actor/model.safetensors"]["bytes"] == 1000
    assert damage(folder) is None and step_of(folder) == 7
    check_checkpoint(folder)


def test_what_fails_leaves_nothing_and_deletes_nothing(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(OSError, match="No space left"), checkpoint_aside(tmp_path, 2, keep=1) as aside:
        (aside / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["checkpoint-1"] and damage(tmp_path / "checkpoint-1") is None


def test_what_a_kill_left_behind_goes_with_the_next_one(tmp_path):
    (tmp_path / ".checkpoint-2.00000002.part").mkdir()
    (tmp_path / ".checkpoint-0.89abcdef.part").mkdir()
    (tmp_path / ".checkpoint-2.00000002.part" / "half").write_text("half")
    assert checkpoints(tmp_path) == [] and newest_whole(tmp_path) is None
    write(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-2"]


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (0, [1, 2, 3, 4]), (None, [1, 2, 3, 4])])
def test_older_ones_are_deleted_when_the_new_one_is_whole(tmp_path, keep, left):
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 4, keep=keep)
    assert [step for step, _ in checkpoints(tmp_path)] == left


def test_the_best_one_is_spared(tmp_path):
    best = write(tmp_path, 1)
    write(tmp_path, 2)
    write(tmp_path, 3, keep=1, spare=[best])
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 3]


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


def flip(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "actor/model.safetensors has 500 of 1,000 bytes"),
        (flip, r"actor/model.safetensors is damaged \(its checksum differs\)"),
        (lambda path: path.unlink(), "actor/model.safetensors is missing"),
    ],
)
def test_damage_is_named_and_an_older_one_taken(tmp_path, capsys, change, said):
    older, newer = write(tmp_path, 1), write(tmp_path, 2)
    change(newer / "actor" / "model.safetensors")
    with pytest.raises(ValueError, match=f"--resume_from_checkpoint: .*checkpoint-2: {said}"):
        check_checkpoint(newer)
    assert newest_whole(tmp_path) == older
    assert "checkpoint-2" in capsys.readouterr().err


def test_a_damaged_manifest(tmp_path):
    folder = write(tmp_path, 1)
    (folder / MANIFEST).write_text('{"files": ')
    assert damage(folder) == f"{MANIFEST} is damaged"


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"of a run of 1 process\(es\), this one has 2: .*NUM_GPUS=1"):
        check_checkpoint(folder)


def test_the_same_step_is_written_again(tmp_path):
    write(tmp_path, 1)
    folder = write(tmp_path, 1, size=20)
    assert names(tmp_path) == ["checkpoint-1"] and damage(folder) is None


def test_those_of_a_course_that_was_left_go(tmp_path):
    """A run that resumes from an older checkpoint must not go on from a newer one the next time, nor keep that."""
    for step in (2, 4, 6):
        write(tmp_path, step)
    write(tmp_path, 3, keep=1)
    assert names(tmp_path) == ["checkpoint-3"]
    write(tmp_path, 5)
    write(tmp_path, 4)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_a_damaged_one_is_not_kept_in_the_place_of_the_new_one(tmp_path, capsys):
    write(tmp_path, 2)
    cut(write(tmp_path, 4) / "actor" / "model.safetensors")
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-2"
    folder = write(tmp_path, 3, keep=1)
    assert newest_whole(tmp_path) == folder and names(tmp_path) == ["checkpoint-3"]


def test_a_manifest_that_cannot_be_written_costs_no_other_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2, keep=1)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 1, keep=1)  # the same step once more
    assert names(tmp_path) == ["checkpoint-1"] and damage(tmp_path / "checkpoint-1") is None
