"""A YAML file of settings, read as if its values had been typed as flags."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

import keju
from keju.errors import UserError

# The settings that come with keju: a YAML file for each stage, deepspeed/ for DeepSpeed.
CONFIGS = Path(keju.__file__).parent / "configs"
NULLS = {"", "~", "null", "Null", "NULL"}


@dataclass(frozen=True)
class Setting:
    """One `key: value` of the file. `texts` are what a shell would pass after the flag; None stands for YAML's null."""

    key: str
    texts: list[str] | None
    where: str


def read_settings(path: str | Path) -> list[Setting]:
    """The settings of a flat YAML mapping, in order. Raises UserError with `file:line` for anything else.

    Scalars stay text, as typed: YAML 1.1 would turn `eval_strategy: no` into False and leave `1e-5` a string.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config file {path} does not exist")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}:{root.start_mark.line + 1}: expected `key: value` lines")
    settings, seen = [], {}
    for key_node, value_node in root.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key, str):
            raise UserError(f"{where}: a key must be a plain name")
        if key in seen:
            raise UserError(f"{where}: {key} is given twice (first at {seen[key]})")
        seen[key] = where
        settings.append(Setting(key, _texts(value_node, where, key), where))
    return settings


def _texts(node: yaml.Node, where: str, key: str) -> list[str] | None:
    if isinstance(node, yaml.MappingNode):  # settings such as lr_scheduler_kwargs; as a flag they are JSON
        return [json.dumps(yaml.SafeLoader("").construct_document(node), ensure_ascii=False)]
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise UserError(f"{where}: {key}: a list may only hold plain values")
        return [item.value for item in node.value]
    if node.style is None and node.value in NULLS:
        return None
    return [node.value]
