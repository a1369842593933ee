"""The files of a checkpoint folder, looked at before a model is built from them: what is wrong names file and key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from keju.errors import UserError
from keju.models.architecture import check_quantization

# Stem and suffix of weight files: "model.safetensors", or in shards "model-00001-of-00002.safetensors" with an index.
SAFETENSORS = ("model", "safetensors")
PICKLES = ("pytorch_model", "bin")
# What weights may be kept in; packed and scaled numbers have meanings that are not in the file.
PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "BOOL", "U8"})


# Files beside config.json by which older folders say that their weights are quantised, and how.
QUANTIZED = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def check_folder(folder: Path) -> None:
    """Raises UserError, with the file and the key, unless `folder` holds a known config and whole safetensors files.

    Only headers are read. A folder with an adapter_config.json passes: its weights are those of another folder.
    """
    if (folder / "adapter_config.json").is_file():
        return
    check_config(folder)
    files = weight_files(folder, SAFETENSORS)
    if not files:
        for path in weight_files(folder, PICKLES):
            raise UserError(
                f"{path}: pickled weights are not loaded; make safetensors of them: "
                f"MODEL={folder} OUTPUT_DIR=... bash examples/convert.sh"
            )
        raise UserError(f"{folder}: has no weights (neither model.safetensors nor model.safetensors.index.json)")
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise UserError(
            f"{folder}: model.safetensors.index.json is missing beside the {len(files)} shards; make one: "
            f"MODEL={folder} OUTPUT_DIR=... bash examples/convert.sh"
        )
    for path, promised in files.items():
        check_promised(path, promised, safetensors_names(path))


def check_config(folder: Path) -> None:
    """Raises UserError unless config.json is there and its model_type is known."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: does not exist")
    read_object(path)
    # As transformers sees it: keju.models.registration fills in what some published files lack.
    fields, _ = PreTrainedConfig.get_config_dict(folder)
    if "model_type" not in fields:
        raise UserError(f"{path}: has no model_type, and its fields are of no known architecture")
    if fields["model_type"] not in CONFIG_MAPPING:
        code = named_code(fields, "AutoModelForCausalLM") or named_code(fields, "AutoConfig")
        if code is not None:
            raise UserError(
                f"{path}: model_type {fields['model_type']!r} is not known: the model is Python code of the folder's "
                f"own, {code}, which is never run; take the model in an architecture of transformers, as some are "
                "also published (MiniCPM, for one, in Llama's)"
            )
        raise UserError(f"{path}: model_type {fields['model_type']!r} is not known")
    for name, method in QUANTIZED.items():
        if (folder / name).is_file():
            fields = fields | {"quantization_config": {"quant_method": method}}
    try:
        check_quantization(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def named_code(fields: dict, kind: str) -> str | None:
    """The class that the auto_map of a JSON file has for an Auto class, None without one."""
    named = fields.get("auto_map")
    found = named.get(kind) if isinstance(named, dict) else named
    if isinstance(found, (list, tuple)):
        found = next((item for item in found if item), None)
    return found if isinstance(found, str) else None


def read_object(path: Path) -> dict:
    """The JSON object in a file. Raises UserError naming the file (and line) if it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: damaged, not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, not a text in UTF-8") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def weight_files(folder: Path, kind: tuple[str, str]) -> dict[Path, Sequence[str]]:
    """The weight files of a kind, each with the tensors that an index promises of it; empty if there are none.

    Shards without an index count by their numbers. Raises UserError for a shard that is not there.
    """
    stem, suffix = kind
    whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
    if whole.is_file():
        return {whole: ()}
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: weight_map must name the file of each tensor")
        shards: dict[Path, list[str]] = {}
        for key, name in weight_map.items():
            if name != Path(name).name or name in ("", ".", ".."):
                raise UserError(f"{index}: the file of {key} must lie in the same folder, not at {name!r}")
            shards.setdefault(folder / name, []).append(key)
        for path, keys in shards.items():
            if not path.is_file():
                raise UserError(f"{index}: {path.name} is missing, the shard of {keys[0]} and {len(keys) - 1} others")
        return shards
    numbered = sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
    if numbered:
        numbers = re.compile(r"-(\d+)-of-(\d+)\.")
        found = [tuple(map(int, match.groups())) for path in numbered if (match := numbers.search(path.name))]
        total = max(total for _, total in found)
        absent = sorted(set(range(1, total + 1)) - {number for number, _ in found})
        if absent:
            raise UserError(f"{folder / numbered[0].name}: shard {absent[0]} of {total} is missing")
    return dict.fromkeys(numbered, ())


def safetensors_names(path: Path) -> list[str]:
    """The tensors in a file. Raises UserError naming it if it is cut off or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            for name in names:
                if (kind := file.get_slice(name).get_dtype()) not in PLAIN:
                    raise UserError(f"{path}: {name} holds quantised numbers ({kind}), which are not read")
            return names
    except (SafetensorError, OSError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: damaged: {str(error).splitlines()[0]}") from error


def num_numbers_in(files: Iterable[Path]) -> int:
    """Numbers in all tensors of safetensors files, by their headers."""
    total = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def check_promised(path: Path, promised: Sequence[str], names: Sequence[str]) -> None:
    """Raises UserError for a tensor that the index looks for in a shard that does not have it."""
    absent = sorted(set(promised) - set(names))
    if absent:
        raise UserError(f"{path}: lacks {absent[0]}, which the index names, and {len(absent) - 1} others")
