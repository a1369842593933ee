"""Weights in pickles and safetensors as one mapping; what is no tensor is neither read nor run."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from keju.conversion.checkpoint import Checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.1, 2.2], dtype=torch.float16), "c": torch.arange(3)}


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def assert_same(found, expected=TENSORS) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS | {"a": torch.nn.Parameter(TENSORS["a"])}, path, _use_new_zipfile_serialization=zipped)
    found = Checkpoint(tmp_path)
    assert_same(found)
    assert len(found) == 3 and not found["a"].requires_grad
    assert list(found.files) == [path]


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize(("stem", "suffix"), [("pytorch_model", "bin"), ("model", "safetensors")])
def test_shards(tmp_path, stem, suffix, with_index):
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    for name, part in zip(names, ({"a": TENSORS["a"]}, {"b": TENSORS["b"], "c": TENSORS["c"]}), strict=True):
        (torch.save if suffix == "bin" else save_file)(part, tmp_path / name)
    if with_index:
        weight_map = {"a": names[0], "b": names[1], "c": names[1]}
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(Checkpoint(tmp_path))
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match="is missing, the shard of b" if with_index else "shard 2 of 2 is missing"):
        Checkpoint(tmp_path)


def test_dtype_is_for_floating_point(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    found = Checkpoint(tmp_path, torch.bfloat16)
    assert [found[name].dtype for name in "abc"] == [torch.bfloat16, torch.bfloat16, torch.int64]


def test_safetensors_come_first(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert_same(Checkpoint(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_not_run(tmp_path, zipped):
    mark, path = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    torch.save({**TENSORS, "evil": Hostile(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=rf"{path}: holds \w+\.system, which is code") as caught:
        Checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds a list"),
        ({"model": TENSORS}, "'model' is a dict, expected a tensor"),
        ({"step": 3}, "'step' is a int"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, words):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=words):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 40, 300, -20])
def test_damaged_pickles(tmp_path, kept):
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path}: damaged: ") as caught:
        Checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tensor_in_two_shards(tmp_path):
    for number in (1, 2):
        torch.save({"a": torch.full((2,), number)}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    with pytest.raises(ValueError, match="00002-of-00002.bin: a is in another shard as well"):
        Checkpoint(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(ValueError, match="has no weights"):
        Checkpoint(tmp_path)
