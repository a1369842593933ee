"""F1 and exact match of written answers, by the rules of CMRC 2018's official evaluation.

Chinese is compared character by character, the rest word by word (those of the Penn Treebank); punctuation and case do
not count. What two answers have in common is their longest common run of such units, not a multiset of them. The best
of several references counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from nltk.tokenize import NLTKWordTokenizer

# The signs that the official evaluation takes for punctuation.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_WORDS = NLTKWordTokenizer()


def span_scores(answer: str, references: Sequence[str]) -> dict[str, float]:
    """{"f1", "em"} of an answer, 0..1 each."""
    units = split_units(answer)
    wanted = [split_units(reference) for reference in references]
    same = any(_plain(answer) == _plain(reference) for reference in references)
    return {"f1": max(_f1(units, other) for other in wanted), "em": float(same)}


def split_units(text: str) -> list[str]:
    """Characters U+4E00 to U+9FA5 one by one, words of what stands between them, no punctuation; in lower case."""
    units: list[str] = []
    foreign = ""
    for character in text.lower().strip():
        if character in PUNCTUATION:
            continue
        if "\u4e00" <= character <= "\u9fa5":
            units += [*_WORDS.tokenize(foreign), character]
            foreign = ""
        else:
            foreign += character
    return units + _WORDS.tokenize(foreign)


def longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest run of units that both have, in O(len(first) * len(second))."""
    longest, row = 0, [0] * (len(second) + 1)
    for unit in first:
        row = [0] + [row[place] + 1 if unit == other else 0 for place, other in enumerate(second)]
        longest = max(longest, *row)
    return longest


def _f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    common = longest_common_run(answer, reference)
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def _plain(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in PUNCTUATION)
