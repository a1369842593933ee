"""Shards of a limited size."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from keju.conversion.shards import parse_size, write_shards


def test_one_file(tmp_path):
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    assert write_shards(tensors.items(), tmp_path, 10**9) == [tmp_path / "model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_shards_and_index(tmp_path):
    tensors = {str(number): torch.full((10,), float(number)) for number in range(5)} | {"large": torch.ones(100)}
    files = write_shards(tensors.items(), tmp_path, 100)
    assert [path.name for path in files] == [f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 600
    assert index["weight_map"]["large"] == files[3].name
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert len(list(tmp_path.iterdir())) == 5


def test_slices_and_copies_of_one_memory(tmp_path):
    packed = torch.arange(12.0).view(6, 2)
    first, second = packed.split(3)
    tensors = {"first": first, "second": second, "same": first, "turned": packed.T}
    write_shards(tensors.items(), tmp_path, 10**9)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_sizes():
    assert parse_size("5GB") == 5 * 10**9
    assert parse_size("1.5 mb") == 1_500_000
    for wrong in ("5", "GB", "0GB", "5GiB"):
        with pytest.raises(ValueError, match="^max_shard_size: "):
            parse_size(wrong)
