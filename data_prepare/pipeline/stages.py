"""The stages between raw data and records. Each is a number of tasks that know nothing of each other; all tasks of a
stage are done before the next begins.

    read    a portion of pieces    -> cleaned items, what duplicates and shared texts are found by
    match   a bucket of hashes     -> pairs of duplicates, texts in two splits
    decide  everything             -> which items and texts go
    deal    a portion              -> what stays of its items, to those with the same nearest key
    rank    a bucket of keys       -> near wrong answers; items go to the shard that a hash draws
    write   a shard                -> far wrong answers, records in an order that a hash draws
    check   a bucket of hashes     -> no text is in two splits

What lies between them is in files of the work folder, none of them larger than a portion, a bucket or a shard, whatever
the size of the corpus; the pairs of duplicates alone, 17 bytes each, are held together.
"""

from __future__ import annotations

import functools
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keju.data_prepare.cleaning.cleaner import Cleaner
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.corpus import BadRow, Item
from keju.data_prepare.data_set import corpus_module
from keju.data_prepare.mixing import copies
from keju.data_prepare.pipeline.drawing import add_wrong_answers
from keju.data_prepare.pipeline.hashing import fraction, hash64
from keju.data_prepare.pipeline.item_files import ItemFile, Numbered, load, save, write_slices
from keju.data_prepare.pipeline.matching import EDGE, duplicate_pairs, in_two_splits, to_remove
from keju.data_prepare.pipeline.plan import SPLITS, Plan
from keju.data_prepare.pipeline.rows import kept_apart, kind_of
from keju.data_prepare.pipeline.shards import ShardWriter
from keju.data_prepare.pipeline.signatures import (
    BAND,
    NUMBER_MASK,
    TEXT,
    bands,
    by_bucket,
    compared_text,
    key_of,
    similarity,
    text_hashes,
)
from keju.data_prepare.step import Step

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
    near = plan.near_duplicates <= 1
    found_bands, found_texts, keys = [np.empty(0, BAND)], [np.empty(0, TEXT)], Counter()

    def lines() -> Iterator[bytes]:
        batch: list[Numbered] = []
        for numbered in _items(plan, number, corpus, step, cleaner):
            batch.append(numbered)
            if len(batch) == BATCH:
                yield from signed(batch)
                batch = []
        yield from signed(batch)

    def signed(batch: list[Numbered]) -> Iterator[bytes]:
        if batch:
            items, numbers = [one.item for one in batch], [key_of(one.number, one.split) for one in batch]
            found_bands.append(bands(items, numbers, near=near))
            found_texts.append(text_hashes(items, numbers))
            keys.update(_near_key(one) for one in batch if one.item.keys)
        for one in batch:
            yield one.line()
        advance(len(batch))

    write_slices(_path(plan, "read", number), [lines()])
    for name, entries in (("bands", np.concatenate(found_bands)), ("texts", np.concatenate(found_texts))):
        entries, begins = by_bucket(entries, plan.num_buckets)
        save(_path(plan, name, number), entries)
        save(_path(plan, f"{name}-begins", number), begins)
    # A key with many items in all has many in some portion.
    many = KEY_ITEMS // len(plan.portions)
    keys = {key: count for key, count in keys.items() if count > many}
    return {"steps": [one.as_row() for one in (step, *cleaner.steps)], "keys": keys}


def _items(plan: Plan, number: int, corpus: ModuleType, step: Step, cleaner: Cleaner) -> Iterator[Numbered]:
    place, raw = 0, Path(plan.raw_dir)
    for item in (item for piece in plan.portions[number] for item in corpus.read(raw, piece, **plan.options)):
        step.rows_in += 1
        if isinstance(item, BadRow):
            if plan.on_bad_line == "error":
                raise ValueError(f"{item.where}: {item.reason}")
            step.drop(_kind_of_reason(item.reason), f"{item.where}: {item.reason}")
            continue
        step.rows_out += 1
        item = cleaner.clean(item)
        if isinstance(item, Item):
            yield Numbered(number << 32 | place, split_of(plan, item), item)
            place += 1


def _kind_of_reason(reason: str) -> str:
    """Without what is different in every row."""
    return VARYING.sub("…", reason)[:SHOWN]


def evaluation_ngrams(plan: Plan) -> str | None:
    """The folder of what rows must not share with evaluation sets."""
    return str(Path(plan.work) / "evaluation") if plan.decontaminate else None


def split_of(plan: Plan, item: Item) -> str:
    """The split of a group is drawn by a hash; prompts for PPO are no loss for pretraining."""
    kind, drawn = kind_of(item.row), fraction("split", plan.seed, item.group)
    for split in SPLITS:
        drawn -= plan.shares.get(split, 0)
        if drawn < 0:
            break
    if kind == "pretrain" and split == "prompts":
        return "train"
    return "prompts" if kind == "prompts" and split == "train" else split


def _near_key(numbered: Numbered) -> int:
    return hash64("key", numbered.split, numbered.item.task, numbered.item.keys[0])


def match(plan: Plan, number: int, advance: Advance) -> Stats:
    files = functools.lru_cache(256)(lambda portion: ItemFile(_path(plan, "read", portion)))

    @functools.lru_cache(4096)
    def text(key: int) -> str:
        item_number = key & NUMBER_MASK
        return compared_text(files(item_number >> 32)[item_number & 0xFFFFFFFF].item)

    def are_alike(one: int, other: int) -> bool:
        return similarity(text(one), text(other)) >= plan.near_duplicates

    entries = _gathered(plan, "bands", number, BAND)
    save(_path(plan, "pairs", number), duplicate_pairs(entries, are_alike))
    advance(len(entries))
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
    advance(len(removed))
    return {"parts": {str(key): -(-count // KEY_ITEMS) for key, count in keys.items() if count > KEY_ITEMS}}


def deal(plan: Plan, number: int, advance: Advance, before: dict[str, list[Stats]]) -> Stats:
    removed, crossing = load(_path(plan, "removed", 0)), load(_path(plan, "crossing", 0))
    # In one piece: searchsorted would copy a column of a table at every call.
    removed_keys, crossing_keys = np.ascontiguousarray(removed["key"]), np.ascontiguousarray(crossing["key"])
    parts = {int(key): count for key, count in before["decide"][0]["parts"].items()}
    duplicates, apart = Step("duplicates"), Step("splits share no text")
    buckets: list[list[bytes]] = [[] for _ in range(plan.num_buckets)]
    for numbered in ItemFile(_path(plan, "read", number)):
        advance(1)
        key, item = key_of(numbered.number, numbered.split), numbered.item
        found = np.searchsorted(removed_keys, np.uint64(key))
        duplicates.rows_in += 1
        if found < len(removed) and removed_keys[found] == key:
            duplicates.drop("equal" if removed["equal"][found] else "nearly equal", _shown(item))
            continue
        duplicates.rows_out += 1
        first = np.searchsorted(crossing_keys, np.uint64(key))
        end = np.searchsorted(crossing_keys, np.uint64(key), side="right")
        apart.rows_in += 1
        if first != end and not _without(item, set(crossing["text"][first:end].tolist())):
            apart.drop(f"a text that an earlier split has, in {numbered.split}", _shown(item))
            continue
        apart.rows_out += 1
        for copy in range(_num_copies(plan, numbered)):
            buckets[_rank_bucket(plan, numbered, parts)].append(replace(numbered, copy=copy).line())
    write_slices(_path(plan, "dealt", number), buckets)
    return {"steps": [duplicates.as_row(), apart.as_row()]}


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


def _num_copies(plan: Plan, numbered: Numbered) -> int:
    """How often an item is there; held-out ones at most once."""
    number = copies(plan.mix.get(numbered.item.source, 1.0), numbered.item.group, plan.seed)
    return number if numbered.split == "train" else min(number, 1)


def _rank_bucket(plan: Plan, numbered: Numbered, parts: dict[int, int]) -> int:
    if not numbered.item.keys:
        return hash64("bucket", numbered.number) % plan.num_buckets
    key = _near_key(numbered)
    part = hash64("part", numbered.item.group) % parts.get(key, 1)
    return hash64("bucket", key, part) % plan.num_buckets


def rank(plan: Plan, number: int, advance: Advance) -> Stats:
    wrong = corpus_module(plan.corpus).WRONG
    files = [ItemFile(_path(plan, "dealt", portion)) for portion in range(len(plan.portions))]
    places = [(portion, line) for portion, file in enumerate(files) for line in file.slice(number)]
    get = functools.lru_cache(1024)(lambda place: files[place[0]][place[1]])
    groups: dict[tuple, list] = {}
    for place in places:
        one = get(place)
        near = (one.split, *_task(one), *one.item.keys[:1])
        groups.setdefault(near, []).append((_order(plan, one), place))
    first_shard, counts = _shards(plan)
    slices: list[list[bytes]] = [[] for _ in plan.shards]
    missing = 0
    for (split, kind, *_), ordered in groups.items():
        ordered.sort()
        others = [place for _, place in ordered]
        for position, (order, place) in enumerate(ordered):
            one = Numbered.parsed(files[place[0]].line(place[1]))
            if kind == "ranked" and len(wrong) > 1 and one.item.keys:
                wanted = [(0, *wrong[0])]
                missing += add_wrong_answers(one.item, others, position, lambda other: get(other).item, wanted)
            slices[first_shard[split] + order % counts[split]].append(one.line())
            advance(1)
    write_slices(_path(plan, "ranked", number), slices)
    return {"missing": missing}


def _order(plan: Plan, numbered: Numbered) -> int:
    """Where an item stands among all of its split."""
    return hash64("order", plan.seed, numbered.number, numbered.copy)


def _task(numbered: Numbered) -> tuple[str, str]:
    """Those that are alike in it exchange answers."""
    return kind_of(numbered.item.row), numbered.item.task


def _shards(plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """The number of the first shard of each split, and how many it has."""
    first: dict[str, int] = {}
    counts: dict[str, int] = {}
    for number, (split, _, count) in enumerate(plan.shards):
        first.setdefault(split, number)
        counts[split] = count
    return first, counts


def write(plan: Plan, number: int, advance: Advance) -> Stats:
    wrong = corpus_module(plan.corpus).WRONG
    split, shard, count = plan.shards[number]
    files = [ItemFile(_path(plan, "ranked", bucket)) for bucket in range(plan.num_buckets)]
    get = functools.lru_cache(1024)(lambda place: files[place[0]][place[1]])
    places = [(bucket, line) for bucket, file in enumerate(files) for line in file.slice(number)]
    ordered = sorted((_order(plan, one), place, _task(one)) for place, one in ((place, get(place)) for place in places))
    tasks: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for _, place, task in ordered:
        tasks.setdefault(task, []).append(place)
    position: Counter[tuple] = Counter()
    missing, hashes = 0, array("Q")
    with ShardWriter(Path(plan.work) / "records", split, shard, count, compress=plan.compress) as writer:
        for _, place, task in ordered:
            one = Numbered.parsed(files[place[0]].line(place[1]))
            if task[0] == "ranked" and wrong:
                first = min(1, len(one.item.keys))  # the nearest have been drawn, where there is a key
                wanted = [(level, *wrong[level]) for level in range(first, min(len(wrong), len(one.item.keys) + 1))]
                others, at = tasks[task], position[task]
                missing += add_wrong_answers(one.item, others, at, lambda other: get(other).item, wanted)
                one.item.row["answers"].sort(key=lambda answer: -answer["score"])
            position[task] += 1
            writer.add(one.item)
            hashes.extend(hash64("text", text) for _, text in kept_apart(one.item.row))
            advance(1)
    written = np.empty(len(hashes), WRITTEN)
    written["hash"], written["split"] = np.array(hashes, np.uint64), SPLITS.index(split)
    entries, begins = by_bucket(np.unique(written), plan.num_buckets)
    save(_path(plan, "written", number), entries)
    save(_path(plan, "written-begins", number), begins)
    return {"missing": missing, "files": writer.files()}


WRITTEN = np.dtype([("hash", "<u8"), ("split", "u1")])


def check(plan: Plan, number: int, advance: Advance) -> Stats:
    parts = [np.empty(0, WRITTEN)]
    for shard in range(len(plan.shards)):
        begins = load(_path(plan, "written-begins", shard))
        parts.append(load(_path(plan, "written", shard))[begins[number] : begins[number + 1]])
    entries = np.unique(np.concatenate(parts))
    texts = entries["hash"]
    assert len(np.unique(texts)) == len(texts), "a text is in two splits"
    advance(len(texts))
    return {"texts": len(texts)}


def _path(plan: Plan, name: str, number: int) -> Path:
    return Path(plan.work) / name / f"{number:06}"


def _shown(item: Item) -> str:
    text = compared_text(item).replace("\n", " ")
    return f"{item.where}: {text[:SHOWN]}{'…' * (len(text) > SHOWN)}"
