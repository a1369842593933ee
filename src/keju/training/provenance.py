"""Where a result comes from: arguments as plain data, versions, machine, commit."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from keju.records.url_keys import url_without_key

PACKAGES = ("keju", "torch", "transformers", "accelerate", "deepspeed", "peft", "triton", "tokenizers", "datasets")


def plain_arguments(arguments: Iterable[Any]) -> dict[str, Any]:
    """The fields of all dataclasses as one dict of JSON values, secrets hidden."""
    plain: dict[str, Any] = {}
    for item in arguments:
        plain |= item.to_dict() if isinstance(item, TrainingArguments) else dataclasses.asdict(item)
    plain = {name: "<hidden>" if _is_secret(name) and value else value for name, value in plain.items()}
    return _without_keys(json.loads(json.dumps(plain, default=str)))


def without_secrets(argv: list[str]) -> list[str]:
    """A command line without the values of flags such as --hub_token."""
    hidden = []
    for position, text in enumerate(argv):
        before = argv[position - 1] if position else ""
        name, equals, _ = text.partition("=")
        if name.startswith("--") and _is_secret(name) and equals:
            text = f"{name}=<hidden>"
        elif before.startswith("--") and _is_secret(before):
            text = "<hidden>"
        hidden.append(url_without_key(text))
    return hidden


def _without_keys(value: Any) -> Any:
    if isinstance(value, str):
        return url_without_key(value)
    if isinstance(value, list):
        return [_without_keys(item) for item in value]
    return {name: _without_keys(item) for name, item in value.items()} if isinstance(value, dict) else value


def _is_secret(name: str) -> bool:
    return name.replace("-", "_").lower().endswith(("_token", "_key", "_secret", "_password"))


def describe_versions() -> dict[str, Any]:
    """{"versions": {package: version}, "git_commit": str | None, "machine": {...}}"""
    versions = {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}
    return {"versions": versions, "git_commit": _git_commit(), "machine": describe_machine()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_machine() -> dict[str, Any]:
    """What the speed of a run depends on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from, "+" behind it when files differ from it."""
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        if commit.returncode:
            return None
        # A package installed into a virtual environment inside somebody's repository is not of that repository.
        if subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10).returncode:
            return None
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
