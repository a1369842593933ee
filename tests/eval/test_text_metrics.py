"""Metrics against numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from keju.eval.text_metrics import bleu, compare, describe, distinct, rouge, words


def test_words_are_jieba_words_without_white_space():
    assert words("我来到北京清华大学 \n") == ["我", "来到", "北京", "清华大学"]


def test_rouge_by_hand():
    # 3 of 4 words shared (one "a" of two), 1 of 3 bigrams (a b), longest common subsequence a b (2 words)
    scores = rouge(["a", "b", "a", "c"], ["a", "b", "d", "c", "c"])
    assert scores["rouge_1"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5), abs=1e-6)
    assert scores["rouge_2"] == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4), abs=1e-6)
    assert scores["rouge_l"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5), abs=1e-6)


def test_rouge_counts_repetitions():
    assert rouge(["好"] * 4, ["好"])["rouge_1"] == pytest.approx(2 * 0.25 / 1.25, abs=1e-6)


@pytest.mark.parametrize(
    ("hypothesis", "reference"), [([], ["好"]), (["好"], []), ([], []), (["。"], ["？"]), (["......"], ["。", "。"])]
)
def test_rouge_of_nothing_is_zero(hypothesis, reference):
    assert rouge(hypothesis, reference) == {"rouge_1": 0.0, "rouge_2": 0.0, "rouge_l": 0.0}


def test_bleu_by_hand():
    # unigrams 5/6, bigrams 3/5, trigrams 1/4, no 4-gram of 3: half a match; as long as the reference
    value = bleu([["the", "cat", "sat", "on", "the", "mat"]], [["the", "cat", "is", "on", "the", "mat"]])
    assert value == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25)


def test_bleu_is_of_the_corpus_and_punishes_short_texts():
    # unigrams 3/3, bigrams 1/1; no text has three words; 3 words against 5
    value = bleu([["a", "b"], ["c"]], [["a", "b", "x"], ["c", "y"]])
    assert value == pytest.approx(math.exp(1 - 5 / 3))


def test_bleu_clips_repetitions():
    assert bleu([["a"] * 4], [["a", "b", "c", "d"]], max_order=1) == pytest.approx(0.25)


def test_bleu_at_its_ends():
    assert bleu([list("abcde")], [list("abcde")]) == pytest.approx(1.0)
    assert bleu([["a"]], [["b"]]) == 0.0
    assert bleu([[], []], [["b"], []]) == 0.0


def test_distinct_by_hand():
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == pytest.approx(2 / 5)
    assert distinct(texts, 2) == pytest.approx(2 / 3)
    assert distinct([["a"], []], 2) == 0.0


def test_compare_survives_empty_texts():
    metrics = compare(["", "形容非常高兴。"], ["形容非常高兴。", "形容非常高兴。"])
    assert metrics["rouge_1"] == pytest.approx(0.5, abs=1e-6)
    assert metrics["exact"] == 0.5
    assert metrics["reference_length"] == 7
    assert metrics["bleu"] == pytest.approx(math.exp(1 - 2))  # half as long, all of it right
    assert describe(["", "好好"])["length"] == 1
