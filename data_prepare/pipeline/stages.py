"""The stages between raw data and records. Each is a number of tasks that know nothing of each other; all tasks of a
stage are done before the next begins.

    read    a portion of pieces    -> cleaned items, what duplicates and shared texts are found by
    match   a bucket of hashes     -> pairs of duplicates, texts in two splits
    decide  everything             -> which items and texts go
    deal    a portion              -> what stays of its items, to those with the same nearest key
    rank    a bucket of keys       -> near wrong answers; items go to the part of a shard that a hash draws
    write   a part of a shard      -> far wrong answers, records in an order that a hash draws
    check   a bucket of hashes     -> no text is in two splits

What lies between them is in files of the work folder, none of them larger than a portion, a bucket or a shard, whatever
the size of the corpus; the pairs of duplicates alone, 17 bytes each, are held together.
"""

from __future__ import annotations

import functools
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keju.data_prepare.cleaning.cleaner import Cleaner
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.corpus import BadRow, Item
from keju.data_prepare.data_set import corpus_module
from keju.data_prepare.mixing import copies
from keju.data_prepare.pipeline.drawing import wrong_answers
from keju.data_prepare.pipeline.hashing import bucket_of, fraction, hash64, mixed, remembered_hash64, text_hash
from keju.data_prepare.pipeline.item_files import (
    ENTRY,
    ItemFile,
    ItemsOfSlice,
    ItemWriter,
    line_of,
    load,
    places_of,
    save,
)
from keju.data_prepare.pipeline.matching import EDGE, duplicate_pairs, in_two_splits, to_remove
from keju.data_prepare.pipeline.plan import SPLITS, Plan
from keju.data_prepare.pipeline.rows import kept_apart, kind_of
from keju.data_prepare.pipeline.shards import PartWriter
from keju.data_prepare.pipeline.signatures import (
    BAND,
    NUMBER_MASK,
    TEXT,
    bands,
    by_bucket,
    compared_text,
    keys_of,
    similarity,
    text_hashes,
)
from keju.data_prepare.step import Step
from keju.errors import UserError

Advance = Callable[[int], None]
Stats = dict[str, Any]

# What tasks write to the work folder, a file a task.
FOLDERS = ("read", "bands", "bands-begins", "texts", "texts-begins", "pairs", "shared", "removed", "crossing", "dealt",
           "ranked", "written", "written-begins")  # fmt: skip
BATCH = 4096  # items whose signatures are computed together
# Items with the same nearest key are in one bucket up to this number; those of larger keys are spread over several.
KEY_ITEMS = 50_000
SHOWN = 80  # characters of an example in the report
VARYING = re.compile(r"\d+|'[^']*'|\"[^\"]*\"|:.*", re.DOTALL)  # parts of a reason that differ from row to row


def read(plan: Plan, number: int, advance: Advance) -> Stats:
    corpus = corpus_module(plan.corpus)
    step, cleaner = Step("read"), Cleaner(CleaningSettings(**plan.cleaning), evaluation_ngrams(plan))
    found_bands, found_texts, near = [np.empty(0, BAND)], [np.empty(0, TEXT)], [np.empty(0, np.uint64)]
    place = number << 32
    with ItemWriter(_path(plan, "read", number)) as writer:
        writer.add_slice()
        for items in _batches(_items(plan, number, corpus, step, cleaner)):
            entries = _entries(plan, corpus, place, items)
            keys = keys_of(entries)
            found_bands.append(bands(items, keys, near=plan.near_duplicates <= 1))
            found_texts.append(text_hashes(items, keys.tolist()))
            near.append(entries["near"])
            writer.write(entries, map(line_of, items))
            place += len(items)
            advance(len(items))
    for name, found in (("bands", np.concatenate(found_bands)), ("texts", np.concatenate(found_texts))):
        found, begins = by_bucket(found, plan.num_buckets)
        save(_path(plan, name, number), found)
        save(_path(plan, f"{name}-begins", number), begins)
    values, counts = np.unique(np.concatenate(near), return_counts=True)
    # One with many items in all has many in some portion.
    many = (counts > KEY_ITEMS // len(plan.portions)) & (values != 0)
    keys = dict(zip(values[many].tolist(), counts[many].tolist(), strict=True))
    return {"steps": [one.as_row() for one in (step, *cleaner.steps)], "keys": keys}


def _items(plan: Plan, number: int, corpus: ModuleType, step: Step, cleaner: Cleaner) -> Iterator[Item]:
    raw = Path(plan.raw_dir)
    for item in (item for piece in plan.portions[number] for item in corpus.read(raw, piece, **plan.options)):
        step.rows_in += 1
        if isinstance(item, BadRow):
            if plan.on_bad_line == "error":
                raise UserError(f"{item.where}: {item.reason}")
            step.drop(_kind_of_reason(item.reason), f"{item.where}: {item.reason}")
            continue
        step.rows_out += 1
        item = cleaner.clean(item)
        if isinstance(item, Item):
            yield item


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, BATCH)):
        yield batch


def _entries(plan: Plan, corpus: ModuleType, first: int, items: Sequence[Item]) -> np.ndarray:
    """[n] of ENTRY. first: the number of the first item."""
    found = np.zeros(len(items), ENTRY)
    found["number"] = np.arange(first, first + len(items), dtype=np.uint64)
    found["order"] = _order(plan, found["number"], np.uint64(0))
    splits = [split_of(plan, item) for item in items]
    found["split"] = list(map(SPLITS.index, splits))
    if corpus.WRONG:
        tasks = [remembered_hash64("task", item.task) if kind_of(item.row) == "ranked" else 0 for item in items]
        near = [
            remembered_hash64("near", split, task, item.keys[0]) if task and item.keys else 0
            for split, task, item in zip(splits, tasks, items, strict=True)
        ]
        # With the dtype: numpy makes floating-point numbers of integers of different sizes.
        found["task"], found["near"] = np.array(tasks, np.uint64), np.array(near, np.uint64)
    return found


def _order(plan: Plan, numbers: np.ndarray, copies: np.ndarray | np.uint64) -> np.ndarray:
    return mixed(mixed(np.uint64(hash64("order", plan.seed)), numbers), copies)


def _kind_of_reason(reason: str) -> str:
    """Without what is different in every row."""
    return VARYING.sub("…", reason)[:SHOWN]


def evaluation_ngrams(plan: Plan) -> str | None:
    """The folder of what rows must not share with evaluation sets."""
    return str(Path(plan.work) / "evaluation") if plan.decontaminate else None


def split_of(plan: Plan, item: Item) -> str:
    """What the raw data say, or drawn for its group by a hash; prompts for PPO are no loss for pretraining."""
    own = plan.own_splits.get(item.source, "train")
    if own != "train":
        return own
    kind, drawn = kind_of(item.row), fraction("split", plan.seed, item.group)
    for split in SPLITS:
        drawn -= plan.drawn_shares.get(split, 0)
        if drawn < 0:
            break
    if kind == "pretrain" and split == "prompts":
        return "train"
    return "prompts" if kind == "prompts" and split == "train" else split


def match(plan: Plan, number: int, advance: Advance) -> Stats:
    files = functools.lru_cache(256)(lambda portion: ItemFile(_path(plan, "read", portion)))

    @functools.lru_cache(4096)
    def text(key: int) -> str:
        item_number = key & NUMBER_MASK
        return compared_text(files(item_number >> 32)[item_number & 0xFFFFFFFF])

    def are_alike(one: int, other: int) -> bool:
        return similarity(text(one), text(other)) >= plan.near_duplicates

    entries = _gathered(plan, "bands", number, BAND)
    save(_path(plan, "pairs", number), duplicate_pairs(entries, are_alike))
    save(_path(plan, "shared", number), in_two_splits(_gathered(plan, "texts", number, TEXT)))
    return {}


def _gathered(plan: Plan, name: str, bucket: int, dtype: np.dtype) -> np.ndarray:
    """The entries of one bucket, from all portions."""
    parts = [np.empty(0, dtype)]
    for portion in range(len(plan.portions)):
        begins = load(_path(plan, f"{name}-begins", portion))
        parts.append(load(_path(plan, name, portion))[begins[bucket] : begins[bucket + 1]])
    return np.concatenate(parts)


def decide(plan: Plan, number: int, advance: Advance, before: dict[str, list[Stats]]) -> Stats:
    pairs = [load(_path(plan, "pairs", bucket)) for bucket in range(plan.num_buckets)]
    removed = to_remove(np.concatenate([np.empty(0, EDGE), *pairs]))
    shared = np.concatenate([load(_path(plan, "shared", bucket)) for bucket in range(plan.num_buckets)])
    save(_path(plan, "removed", 0), removed)
    save(_path(plan, "crossing", 0), np.sort(shared, order=("key", "text")))
    keys = Counter()
    for stats in before["read"]:
        keys.update({int(key): count for key, count in stats["keys"].items()})
    return {"parts": {str(key): -(-count // KEY_ITEMS) for key, count in keys.items() if count > KEY_ITEMS}}


def deal(plan: Plan, number: int, advance: Advance, before: dict[str, list[Stats]]) -> Stats:
    parts = {int(key): count for key, count in before["decide"][0]["parts"].items()}
    file = ItemFile(_path(plan, "read", number))
    duplicates, apart = Step("duplicates", rows_in=len(file)), Step("splits share no text")
    stays = np.ones(len(file), bool)
    _drop_duplicates(plan, file, stays, duplicates)
    changed = _keep_apart(plan, file, stays, apart)
    places = np.flatnonzero(stays)
    copied = [_num_copies(plan, file, place) for place in places.tolist()] if plan.mix else 1
    places = np.repeat(places, copied)
    entries = file.entries[places]
    firsts = np.searchsorted(places, places)  # of copies of the same item
    entries["order"] = _order(plan, entries["number"], (np.arange(len(places)) - firsts).astype(np.uint64))
    buckets = bucket_of(_dealt_by(file, places, entries, parts), plan.num_buckets)
    with ItemWriter(_path(plan, "dealt", number)) as writer:
        for chosen in places_of(buckets, plan.num_buckets):
            writer.add_slice()
            writer.write(entries[chosen], (changed.get(place) or file.line(place) for place in places[chosen].tolist()))
    advance(len(file))
    return {"steps": [duplicates.as_row(), apart.as_row()]}


def _drop_duplicates(plan: Plan, file: ItemFile, stays: np.ndarray, step: Step) -> None:
    removed = load(_path(plan, "removed", 0))
    places, found = _looked_up(np.ascontiguousarray(removed["key"]), keys_of(file.entries))
    for place, equal in zip(places.tolist(), removed["equal"][found].tolist(), strict=True):
        step.drop("equal" if equal else "nearly equal", _shown(file[place]))
    stays[places] = False
    step.rows_out = int(stays.sum())


def _keep_apart(plan: Plan, file: ItemFile, stays: np.ndarray, step: Step) -> dict[int, bytes]:
    """Drops what shares a text with an earlier split; the lines of those that can do without it, by their place."""
    step.rows_in = int(stays.sum())
    crossing = load(_path(plan, "crossing", 0))
    table, changed = np.ascontiguousarray(crossing["key"]), {}
    keys = keys_of(file.entries)
    places, firsts = _looked_up(table, keys)
    ends = np.searchsorted(table, keys[places], side="right")
    for place, first, end in zip(places.tolist(), firsts.tolist(), ends.tolist(), strict=True):
        if not stays[place]:
            continue
        item = file[place]
        if _without(item, set(crossing["text"][first:end].tolist())):
            changed[place] = line_of(item)
        else:
            stays[place] = False
            step.drop(f"{file.split(place)}: another split has one of its texts", _shown(item))
    step.rows_out = int(stays.sum())
    return changed


def _looked_up(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places of keys that are in the sorted table, where in it each is first)."""
    found = np.searchsorted(table, keys)
    there = found < len(table)
    there[there] = table[found[there]] == keys[there]
    return np.flatnonzero(there), found[there]


def _dealt_by(file: ItemFile, places: np.ndarray, entries: np.ndarray, parts: dict[int, int]) -> np.ndarray:
    """A hash for each item, the same for those that exchange near answers; keys with very many items go in parts."""
    near = entries["near"].copy()
    alone = near == 0
    near[alone] = mixed(np.uint64(0), entries["number"][alone])
    for place in np.flatnonzero(np.isin(near, np.array(list(parts), np.uint64))).tolist():
        part = hash64("part", file[places[place]].group) % parts[int(near[place])]
        near[place] = mixed(near[place], np.uint64(part))
    return near


def _without(item: Item, numbers: set[int]) -> bool:
    """Takes the texts of these numbers (see `texts_of`) out of the row; False if the row cannot do without."""
    if kind_of(item.row) != "ranked" or 0 in numbers:
        return False
    answers = item.row["answers"]
    kept = [answer for number, answer in enumerate(answers, start=1) if number not in numbers]
    if not kept or max(answer["score"] for answer in kept) < max(answer["score"] for answer in answers):
        return False
    item.row["answers"] = kept
    return True


def _num_copies(plan: Plan, file: ItemFile, place: int) -> int:
    """How often an item is there; held-out ones at most once."""
    item = file[place]
    number = copies(plan.mix.get(item.source, 1.0), item.group, plan.seed)
    return number if file.split(place) == "train" else min(number, 1)


def rank(plan: Plan, number: int, advance: Advance) -> Stats:
    wrong = corpus_module(plan.corpus).WRONG
    files = [ItemFile(_path(plan, "dealt", portion)) for portion in range(len(plan.portions))]
    items = ItemsOfSlice(files, number, ("near", "order"))
    lines, missing = np.empty(len(items), object), 0
    near = items.entries["near"]
    bounds = np.flatnonzero(np.concatenate([[True], near[1:] != near[:-1], [True]])) if len(items) else near
    for start, end in itertools.pairwise(bounds.tolist()):
        others = range(start, end)
        for place in others:
            if near[start] and len(wrong) > 1:
                item = items.item(place)
                answers, not_found = wrong_answers(item, others, place - start, items.item, [(0, *wrong[0])])
                missing += not_found
                lines[place] = line_of(item, _with_answers(item.row, answers))
            else:
                lines[place] = items.line(place)
        advance(end - start)
    parts = _parts(plan, items.entries)
    with ItemWriter(_path(plan, "ranked", number)) as writer:
        for chosen in places_of(parts, len(plan.parts)):
            writer.add_slice()
            writer.write(items.entries[chosen], lines[chosen])
    return {"missing": missing}


def _with_answers(row: dict[str, Any], more: list[dict[str, Any]]) -> dict[str, Any]:
    """Not in the row itself, which others may be given an answer of."""
    answers = sorted(row["answers"] + more, key=itemgetter("score"), reverse=True)
    return row | {"answers": answers}


def _parts(plan: Plan, entries: np.ndarray) -> np.ndarray:
    """Which of plan.parts each item is in. Parts follow each other in the order of their items."""
    found = np.zeros(len(entries), np.uint64)
    for first, one in enumerate(plan.parts):
        if one.shard == one.part == 0:
            own = entries["split"] == SPLITS.index(one.split)
            order = entries["order"][own]
            shards, parts = order % np.uint64(one.num_shards), bucket_of(order, one.num_parts)
            found[own] = np.uint64(first) + shards * np.uint64(one.num_parts) + parts
    return found


def write(plan: Plan, number: int, advance: Advance) -> Stats:
    wrong = corpus_module(plan.corpus).WRONG
    part = plan.parts[number]
    files = [ItemFile(_path(plan, "ranked", bucket)) for bucket in range(plan.num_buckets)]
    items = ItemsOfSlice(files, number, ("order",))
    tasks = items.entries["task"].tolist()
    exchange: dict[int, list[int]] = {}
    for place, task in enumerate(tasks):
        exchange.setdefault(task, []).append(place)
    position: Counter[int] = Counter()
    missing, hashes = 0, array("Q")
    with PartWriter(Path(plan.work) / "records", part, compress=plan.compress) as writer:
        for place, task in enumerate(tasks):
            item = items.item(place)
            row = item.row
            if task:
                first = min(1, len(item.keys))  # the nearest have been drawn, where there is a key
                wanted = [(level, *wrong[level]) for level in range(first, min(len(wrong), len(item.keys) + 1))]
                answers, not_found = wrong_answers(item, exchange[task], position[task], items.item, wanted)
                missing += not_found
                position[task] += 1
                row = _with_answers(row, answers)
            writer.add(row, item.source)
            hashes.extend(text_hash(text) for _, text in kept_apart(row))
            advance(1)
    different = np.unique(np.array(hashes, np.uint64))
    written = np.empty(len(different), WRITTEN)
    written["hash"], written["split"] = different, SPLITS.index(part.split)
    entries, begins = by_bucket(written, plan.num_buckets)
    save(_path(plan, "written", number), entries)
    save(_path(plan, "written-begins", number), begins)
    return {"missing": missing, "files": writer.files()}


WRITTEN = np.dtype([("hash", "<u8"), ("split", "u1")])


def check(plan: Plan, number: int, advance: Advance) -> Stats:
    parts = [np.empty(0, WRITTEN)]
    for part in range(len(plan.parts)):
        begins = load(_path(plan, "written-begins", part))
        parts.append(load(_path(plan, "written", part))[begins[number] : begins[number + 1]])
    entries = np.concatenate(parts)
    entries = entries[np.lexsort((entries["split"], entries["hash"]))]
    is_same = entries["hash"][1:] == entries["hash"][:-1]
    assert not np.any(is_same & (entries["split"][1:] != entries["split"][:-1])), "a text is in two splits"
    return {"texts": int(len(entries) - is_same.sum())}


def _path(plan: Plan, name: str, number: int) -> Path:
    return Path(plan.work) / name / f"{number:06}"


def _shown(item: Item) -> str:
    text = compared_text(item).replace("\n", " ")
    return f"{item.where}: {text[:SHOWN]}{'…' * (len(text) > SHOWN)}"
