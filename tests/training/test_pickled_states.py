"""Payloads in the states of DeepSpeed are seen before they run."""

from __future__ import annotations

import os
import zipfile

import pytest
import torch

from keju.training.pickled_states import check_states

NAME = "zero_pp_rank_0_mp_rank_00_model_states.pt"


class Payload:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_plain_states_pass(tmp_path):
    (tmp_path / "global_step1").mkdir()
    torch.save({"step": 1, "weights": torch.ones(3)}, tmp_path / "global_step1" / NAME)
    check_states(tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_payload_is_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.ones(3), "more": Payload()}, tmp_path / NAME, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=f"{NAME}: (holds posix.system, which is code|damaged, or no state)"):
        check_states(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_files_of_another_kind(tmp_path):
    (tmp_path / NAME).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="no state of DeepSpeed"):
        check_states(tmp_path)
    with zipfile.ZipFile(tmp_path / NAME, "w") as file:
        file.writestr("a/data.pkl", b"")
    with pytest.raises(ValueError, match="no state of DeepSpeed"):
        check_states(tmp_path)
