"""How Chinese a row is, and texts that repeat themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.cleaning.language import han_share
from keju.data_prepare.cleaning.repetition import repeated_share


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
    assert (repeated_share(text) > 0.5) == most


@given(st.text())
def test_shares_are_shares(text):
    assert 0 <= han_share([text]) <= 1
    assert 0 <= repeated_share(text) <= 1


def test_real_text_is_neither_foreign_nor_repeated(shared):
    lines = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if len(line) >= 5]
    assert sum(han_share([line]) < 0.3 for line in lines) < 0.01 * len(lines)
    assert 0 < sum(repeated_share(line) > 0.5 for line in lines) < 0.01 * len(lines)
