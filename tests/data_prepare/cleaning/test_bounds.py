"""How Chinese a row is, and texts that repeat themselves."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.data_prepare.cleaning.language import han_share
from keju.data_prepare.cleaning.repetition import MIN_CHARS, MIN_SENTENCES, repeats_itself


@pytest.mark.parametrize(
    ("texts", "least", "most"),
    [
        (["怎样用 PyTorch 的 DataLoader？"], 0.6, 0.8),
        (["1+1=?", "等于2"], 1, 1),
        (["The quick brown fox 你好"], 0.3, 0.4),
        (["1234 !?"], 0, 0),
        (["こんにちは世界"], 0.2, 0.4),
        (["翻译成英文：你好", "Hello"], 0.8, 0.9),
        (["𠮷野家"], 1, 1),
        ([""], 0, 0),
    ],
)
def test_han_share(texts, least, most):
    assert least <= han_share(texts) <= most


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("好" * 30, True),
        ("好 " * 30, True),
        ("质量很好。" * 6, True),
        ("质量很好\n" * 4 + "就是物流有一点慢，等了", True),
        ("好" * 19, False),
        ("书的内容不错值得学习。卖家很细心。包装得很好。书的内容不错值得学习。", False),
        ("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", False),
        (" " * 40, False),
    ],
)
def test_repetition(text, most):
    assert repeats_itself(text, 0.5) == most


@given(st.text())
def test_shares_are_shares(text):
    assert 0 <= han_share([text]) <= 1


@settings(max_examples=500)
@given(st.text("好坏，。\n 1234567890", max_size=60), st.floats(0, 1))
def test_repetition_as_it_is_defined(text, most):
    characters = Counter(text.replace(" ", "").replace("\n", ""))
    sentences = Counter(filter(None, re.split("[\n。，]+", text)))
    shares = [count / sum(characters.values()) for count in characters.values()]
    if sum(sentences.values()) >= MIN_SENTENCES:
        length = sum(len(one) * count for one, count in sentences.items())
        shares += [len(one) * count / length for one, count in sentences.items() if count > 2]
    repeated = len(text) >= MIN_CHARS and max(shares, default=0) > most
    assert repeats_itself(text, most) == repeated


def test_real_text_is_neither_foreign_nor_repeated(shared):
    lines = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if len(line) >= 5]
    assert sum(han_share([line]) < 0.3 for line in lines) < 0.01 * len(lines)
    assert 0 < sum(repeats_itself(line, 0.5) for line in lines) < 0.01 * len(lines)
