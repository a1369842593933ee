"""Metrics of generated Chinese text against references: ROUGE, BLEU, and what needs no reference.

Texts are compared as words of jieba; white space is no word. All shares are 0..1.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence

import jieba
from rouge_chinese import Rouge

jieba.setLogLevel(logging.WARNING)  # it announces its dictionary on stderr otherwise


def words(text: str) -> list[str]:
    """The words of a text by jieba, punctuation included."""
    return [word for word in jieba.cut(text) if not word.isspace()]


def rouge(hypothesis: Sequence[str], reference: Sequence[str]) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L of two texts as words; all 0 when one of them has no words."""
    if not hypothesis or not reference:
        return {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}
    # exclusive=False: n-grams are counted as often as they occur (Lin 2004); by default the package takes their set.
    (scores,) = Rouge(exclusive=False).get_scores(" ".join(hypothesis), " ".join(reference))
    return {name.replace("-", "_"): score["f"] for name, score in scores.items()}


def bleu(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], max_order: int = 4) -> float:
    """Corpus BLEU (Papineni et al. 2002), one reference a hypothesis, each a list of words or characters.

    Counts are summed over the corpus before they are divided. Smoothing is that of NIST and of sacrebleu ("exp"): the
    k-th order without a match counts 1 / 2^k of a match. Orders that no hypothesis is long enough for are left out.
    """
    matches, totals = [0] * max_order, [0] * max_order
    hypothesis_length = sum(map(len, hypotheses))
    reference_length = sum(map(len, references))
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for order in range(1, max_order + 1):
            found = _ngrams(hypothesis, order)
            matches[order - 1] += sum((found & _ngrams(reference, order)).values())
            totals[order - 1] += sum(found.values())
    if not any(matches):
        return 0.0
    logs, halvings = [], 0
    for match, total in zip(matches, totals, strict=True):
        if total == 0:
            break
        if match == 0:
            halvings += 1
            match = 0.5**halvings
        logs.append(math.log(match / total))
    brevity = min(0.0, 1 - reference_length / hypothesis_length)
    return math.exp(brevity + sum(logs) / len(logs))


def distinct(texts: Sequence[Sequence[str]], order: int) -> float:
    """Different n-grams / all n-grams over all texts together (Li et al. 2016); 0 when there is none."""
    counts: Counter = Counter()
    for text in texts:
        counts += _ngrams(text, order)
    return len(counts) / sum(counts.values()) if counts else 0.0


def describe(hypotheses: Sequence[str]) -> dict[str, float]:
    """distinct_1, distinct_2, and the mean length in characters, of at least one text."""
    split = [words(text) for text in hypotheses]
    return {
        "distinct_1": distinct(split, 1),
        "distinct_2": distinct(split, 2),
        "length": sum(map(len, hypotheses)) / len(hypotheses),
    }


def compare(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Means of ROUGE, corpus BLEU over words, and the share that equals its reference; one reference a hypothesis."""
    pairs = [(words(ours), words(theirs)) for ours, theirs in zip(hypotheses, references, strict=True)]
    rouges = [rouge(*pair) for pair in pairs]
    return {
        **{name: sum(row[name] for row in rouges) / len(rouges) for name in rouges[0]},
        "bleu": bleu([ours for ours, _ in pairs], [theirs for _, theirs in pairs]),
        "exact": sum(ours.strip() == theirs.strip() for ours, theirs in zip(hypotheses, references, strict=True))
        / len(pairs),
        "reference_length": sum(map(len, references)) / len(references),
    }


def _ngrams(items: Sequence[str], order: int) -> Counter:
    return Counter(tuple(items[start : start + order]) for start in range(len(items) - order + 1))
