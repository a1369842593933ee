"""The output is whole or not there."""

from __future__ import annotations

import pytest

from keju.conversion.output_folder import check_output
from keju.records.writing import whole_folder


def test_it_appears_at_the_end(tmp_path):
    with whole_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_changes_nothing(tmp_path, there):
    output = tmp_path / "out"
    if there:
        output.mkdir()
        (output / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(output) as folder:
        (folder / "file").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * there
    assert not there or (output / "file").read_text() == "old"


def test_nothing_old_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("old")
    with whole_folder(tmp_path / "out") as folder:
        (folder / "model.safetensors.index.json").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors.index.json"]


def test_what_is_refused(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for place in (source, source / "inside", tmp_path):
        with pytest.raises(ValueError, match="must lie apart"):
            check_output(place, source, overwrite=True)
    check_output(output, source, overwrite=False)
    output.mkdir()
    check_output(output, source, overwrite=False)
    (output / "letter.txt").touch()
    with pytest.raises(ValueError, match="--overwrite_output_dir"):
        check_output(output, source, overwrite=False)
    with pytest.raises(ValueError, match="holds no model"):
        check_output(output, source, overwrite=True)
    (output / "config.json").touch()
    check_output(output, source, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        check_output(output / "letter.txt", source, overwrite=True)
