from __future__ import annotations

import os
from pathlib import Path

import pytest

from keju.training import cache_folder as module


@pytest.fixture
def without_home(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    module._private_folder.cache_clear()
    yield tmp_path
    module._private_folder.cache_clear()


def test_the_usual_places(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert module.cache_folder("tokens") == tmp_path / "xdg" / "keju" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module.cache_folder("tokens") == tmp_path / ".cache" / "keju" / "tokens"


def test_without_a_home_it_is_this_user_s_alone(without_home):
    folder = module.cache_folder("tokens")
    assert folder == without_home / f"keju-cache-{os.getuid()}" / "keju" / "tokens"
    assert (
        folder.parents[1].stat().st_mode & 0o777 == 0o700 and module.cache_folder("x").parents[1] == folder.parents[1]
    )


def test_other_libraries_get_a_place_there_too(without_home, monkeypatch):
    for name in module.OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    module.give_others_a_place()
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
    assert Path(os.environ["MPLCONFIGDIR"]) == module.cache_folder("matplotlib")


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_what_others_have_made_there_is_not_used(without_home, kind):
    planted = without_home / f"keju-cache-{os.getuid()}"
    if kind == "writable":
        planted.mkdir()
        planted.chmod(0o777)
    elif kind == "link":
        (without_home / "elsewhere").mkdir()
        planted.symlink_to(without_home / "elsewhere")
    else:
        planted.write_text("")
    assert not module.cache_folder("tokens").is_relative_to(planted)


@pytest.mark.parametrize(("mode", "says"), [(0o700, False), (0o775, False), (0o777, True), (0o1777, True)])
def test_a_cache_that_everybody_can_write_is_named(tmp_path, capsys, mode, says):
    tmp_path.chmod(mode)
    module.warn_if_open(tmp_path)
    module.warn_if_open(tmp_path / "none")
    assert (f"every user can write to {tmp_path}" in capsys.readouterr().err) == says
