"""Wrong answers: the right ones of other items, near and far.

Items stand in an order that a hash draws. Each takes answers of those that follow it, so that every answer is given as
a wrong one about as often as every other, and the time an item takes does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from keju.data_prepare.corpus import Item
from keju.data_prepare.pipeline.rows import best_answer

TRIES = 64  # items that are looked at for one answer; then the item goes without


def wrong_answers(
    item: Item,
    others: Sequence[int],
    position: int,
    get: Callable[[int], Item],
    wanted: Sequence[tuple[int, int, int]],
) -> tuple[list[dict[str, Any]], int]:
    """(answers as in a ranked row, none of them in that of `item`; how many were not found).

    others: in the order drawn, `position` is the item itself. get: the item for an element of `others`.
    wanted: (level, score, count); level j: of an item that shares keys[j] and no key before it (see `corpus.py`).
    """
    answers: list[dict[str, Any]] = []
    present = {answer["answer"] for answer in item.row["answers"]}
    missing = {level: (score, count) for level, score, count in wanted if count}
    tries = TRIES * sum(count for _, count in missing.values())
    for step in range(1, min(len(others), tries + 1)):
        if not missing:
            break
        other = get(others[(position + step) % len(others)])
        level = level_of(item.keys, other.keys)
        if level not in missing or other.group == item.group:
            continue
        text = best_answer(other.row)
        if text in present:
            continue
        score, count = missing.pop(level)
        present.add(text)
        answers.append({"answer": text, "score": score})
        if count > 1:
            missing[level] = score, count - 1
    return answers, sum(count for _, count in missing.values())


def level_of(keys: Sequence[str], others: Sequence[str]) -> int:
    """The first of `keys` that is shared; their number if none is."""
    for level, (ours, theirs) in enumerate(zip(keys, others, strict=True)):
        if ours == theirs:
            return level
    return len(keys)
