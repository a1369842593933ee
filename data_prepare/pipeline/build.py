"""From a folder of raw data to the records of a corpus, in a work folder from which the finished ones are taken."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from keju.data_prepare.pipeline import engine
from keju.data_prepare.pipeline.plan import PLAN, Plan
from keju.data_prepare.pipeline.rows import context_of, reply_of
from keju.data_prepare.pipeline.shards import SAMPLES, put_together
from keju.data_prepare.step import Step, merge
from keju.records.json_text import json_rows

FILE_KINDS = ("ranked", "chat", "pretrain", "prompts")  # from the one to look at first
VOCABULARY_ROWS = 50_000
ENDS = 1 << 16  # bytes of a file's beginning and end by which it is known again


def fingerprint(folder: Path) -> str:
    """Of the names, sizes, beginnings and ends of all files."""
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder.parent)}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read(ENDS))
    return digest.hexdigest()[:16]


def begin(plan: Plan) -> bool:
    """Makes the work folder for `plan`; True if one is there already, whose tasks need not be done again."""
    work = Path(plan.work)
    if (work / PLAN).is_file():
        try:
            if Plan.load(work) == plan:
                return True
        except (ValueError, TypeError, KeyError):  # of another version
            pass
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    plan.save()
    return False


def collect(plan: Plan, folder: Path) -> dict[str, Any]:
    """Puts the finished records into `folder` and leaves the work folder as it is; returns what is to be said of them.

    Raises ValueError where nothing is left of the corpus.
    """
    files = _files(plan)
    if not any(counts["rows"] for name, counts in files.items() if name.endswith("_train")):
        dropped = Counter()
        for step in steps(plan):
            dropped.update({reason: found["rows"] for reason, found in step["dropped"].items()})
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common(3)) or "no rows in it"
        raise ValueError(f"--raw_dir {plan.raw_dir}: nothing to train on is left of the corpus ({why})")
    files = {name: files[name] for name in sorted(files, key=_reading_order) if files[name]["rows"]}
    patterns = {}
    for name in files:
        shards = sorted((Path(plan.work) / "records").glob(f"{name}[-.]*"))
        for shard in shards:
            put_together(sorted(shard.glob("[0-9]*")), folder / shard.name)
        patterns[name] = shards[0].name if len(shards) == 1 else shards[0].name.replace("-00001-", "-*-")
    missing = sum(figures["missing"] for stage in ("rank", "write") for figures in engine.figures(plan, stage))
    return {
        "rows": {patterns[name]: counts["rows"] for name, counts in files.items()},
        "missing_wrong_answers": missing,
        "steps": steps(plan),
        "files": {patterns[name]: counts for name, counts in files.items()},
    }


def _reading_order(name: str) -> tuple[bool, int, str]:
    """What is trained on first, and prompts after what has answers."""
    return not name.endswith("_train"), FILE_KINDS.index(name.partition("_")[0]), name


def steps(plan: Plan) -> list[dict[str, Any]]:
    """The steps of all tasks, summed."""
    tasks = (task["steps"] for stage in ("read", "deal") for task in engine.figures(plan, stage))
    return [step.as_row() for step in merge([Step.from_row(row) for row in rows] for rows in tasks)]


def _files(plan: Plan) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for task in engine.figures(plan, "write"):
        for name, counts in task["files"].items():
            if name not in merged:
                merged[name] = counts
                continue
            whole = merged[name]
            whole["rows"] += counts["rows"]
            whole["samples"] = (whole["samples"] + counts["samples"])[:SAMPLES]
            for field in ("sources", "lengths", "answers"):
                whole[field] = dict(Counter(whole[field]) + Counter(counts[field]))
    return merged


def training_texts(folder: Path) -> list[str]:
    """Texts for a vocabulary: those of the first training rows, which are in random order."""
    texts: list[str] = []
    for path in sorted(folder.glob("*_train*.jsonl*")):
        if path.name.startswith("prompts"):
            continue
        for row in json_rows(path):
            if len(texts) >= VOCABULARY_ROWS:
                break
            texts += filter(None, (context_of(row), reply_of(row)))
    return texts
