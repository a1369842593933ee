"""Tensors into safetensors files of a limited size, one file in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from keju.errors import UserError
from keju.records.writing import write_json

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """5GB -> 5 * 10**9 bytes. Raises UserError for anything else than a number and KB, MB, GB or TB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|TB)", text.strip(), flags=re.IGNORECASE)
    if match is None or float(match.group(1)) == 0:
        raise UserError(f"give a number and a unit, such as 5GB, not {text}", option="max_shard_size")
    return int(float(match.group(1)) * UNITS[match.group(2).upper()])


def write_shards(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, max_bytes: int) -> list[Path]:
    """Writes model.safetensors, or shards of at most `max_bytes` with their index; returns the weight files.

    A tensor larger than `max_bytes` gets a file of its own.
    """
    parts: list[Path] = []
    names: list[list[str]] = []
    total = 0

    def flush() -> None:
        parts.append(folder / f"part-{len(parts)}.safetensors")
        names.append(list(pending))
        save_file(pending, parts[-1], metadata={"format": "pt"})

    pending: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if pending and size + num_bytes > max_bytes:
            flush()
            pending, size = {}, 0
        # Slices of one packed matrix, and tied weights, share memory: files hold each on its own.
        pending[name] = tensor.clone(memory_format=torch.contiguous_format)
        size += num_bytes
        total += num_bytes
    flush()
    if len(parts) == 1:
        return [parts[0].rename(folder / "model.safetensors")]
    width = f"{len(parts):05}"
    files = [part.rename(folder / f"model-{i:05}-of-{width}.safetensors") for i, part in enumerate(parts, start=1)]
    weight_map = {name: file.name for file, group in zip(files, names, strict=True) for name in group}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return files
