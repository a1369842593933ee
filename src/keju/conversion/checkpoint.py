"""The weights of a folder as a mapping, whatever files they are in; tensors are read when they are asked for."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from keju.errors import UserError
from keju.models.checkpoint_files import PICKLES, SAFETENSORS, check_promised, safetensors_names, weight_files


class Checkpoint(Mapping[str, torch.Tensor]):
    """name -> tensor, from safetensors or, without those, from pytorch_model*.bin.

    dtype: what floating point tensors are rounded to as they are read; None leaves them. Nothing but tensors is
    unpickled. Raises UserError, naming file and key, for missing shards, for files that are cut off and for those that
    hold anything else than tensors.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self._read: dict[str, Callable[[], torch.Tensor]] = {}
        self.files = weight_files(folder, SAFETENSORS)
        open_file = _open_safetensors
        if not self.files:
            self.files, open_file = weight_files(folder, PICKLES), _open_pickle
        if not self.files:
            raise UserError(f"{folder}: has no weights (neither model*.safetensors nor pytorch_model*.bin)")
        for path, promised in self.files.items():
            tensors = open_file(path)
            check_promised(path, promised, list(tensors))
            twice = sorted(tensors.keys() & self._read.keys())
            if twice:
                raise UserError(f"{path}: {twice[0]} is in another shard as well")
            self._read |= tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._read[name]()
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def _open_safetensors(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    names = safetensors_names(path)
    file = safe_open(path, framework="pt")
    return {name: lambda name=name: file.get_tensor(name) for name in names}


def _open_pickle(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    try:
        # Files of the current format stay on the disk until their numbers are used.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch says in which of many ways a file is no checkpoint
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise UserError(
                f"{path}: holds {refused.group(1)}, which is code and no tensor: it was not run, the file is not read"
            ) from error
        raise UserError(f"{path}: damaged: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
    if not isinstance(tensors, dict):
        raise UserError(f"{path}: holds a {type(tensors).__name__}, expected a dict of tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor")
    return {name: lambda tensor=tensor: tensor.detach() for name, tensor in tensors.items()}
