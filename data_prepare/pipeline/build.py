"""From a folder of raw data to the records of a corpus, in a work folder from which the finished ones are taken."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from keju.data_prepare.pipeline import engine
from keju.data_prepare.pipeline.plan import PLAN, Plan
from keju.data_prepare.pipeline.rows import context_of, reply_of
from keju.data_prepare.pipeline.shards import SAMPLES, file_name, put_together
from keju.data_prepare.step import Step, merge
from keju.errors import UserError
from keju.records.reading import iterate_rows

FILE_KINDS = ("ranked", "chat", "pretrain", "prompts")  # from the one to look at first
VOCABULARY_ROWS = 50_000


def begin(plan: Plan) -> bool:
    """Makes the work folder for `plan`; True if one is there already, whose tasks need not be done again."""
    work = Path(plan.work)
    if (work / PLAN).is_file():
        try:
            if Plan.load(work) == plan:
                return True
        except (ValueError, TypeError, KeyError):  # of another version
            pass
    remove_work(work)
    work.mkdir(parents=True)
    plan.save()
    return False


def remove_work(work: Path) -> None:
    """The plan goes first: without it, what a kill in the middle leaves is not gone on with."""
    (work / PLAN).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def collect(plan: Plan, folder: Path) -> dict[str, Any]:
    """Puts the finished records into `folder` and leaves the work folder as it is; returns what is to be said of them.

    Raises UserError where nothing is left of the corpus to train on.
    """
    files = _files(plan)
    if not has_training_rows(plan):
        dropped = [item for step in steps(plan) for item in step["dropped"].items()]
        dropped.sort(key=lambda item: -item[1]["rows"])
        reasons = [f"{found['rows']} dropped: {reason}; as {found['examples'][0]}" for reason, found in dropped[:2]]
        why, total = "; ".join(reasons) or "no other rows", steps(plan)[0]["rows_in"]
        raise UserError(f"{plan.raw_dir}: nothing to train on is left of {total} rows ({why})", option="raw_dir")
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


def has_training_rows(plan: Plan) -> bool:
    """Prompts alone will do where there is nothing else."""
    rows = {name: counts["rows"] for name, counts in _files(plan).items() if counts["rows"]}
    of_prompts = [name for name in rows if name.startswith("prompts")]
    return any(name.endswith("_train") for name in rows if len(of_prompts) == len(rows) or name not in of_prompts)


def num_rows_held_out(plan: Plan) -> int:
    """Rows of splits that were drawn for them."""
    drawn = [name for name in plan.drawn_shares if plan.drawn_shares[name]]
    files = {file_name(kind, split) for kind in FILE_KINDS for split in drawn}
    return sum(counts["rows"] for name, counts in _files(plan).items() if name in files)


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
    paths = sorted(folder.glob("*_train*.jsonl*"))
    others = [path for path in paths if not path.name.startswith("prompts")]
    for path in others or paths:
        for _, row in iterate_rows(path):
            if len(texts) >= VOCABULARY_ROWS:
                break
            texts += filter(None, (context_of(row), reply_of(row)))
    return texts
