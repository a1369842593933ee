"""Ids of many texts at once against tiktoken's, on Qwen's vocabulary and on small ones."""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections import Counter

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keju.tokenizers import byte_pieces
from keju.tokenizers.byte_pieces import PIECE, BytePieces
from keju.tokenizers.qwen import read_ranks

# What PIECE and tokens with parts of characters are particular about.
ODD = [*"\"' \t\n\r\u3000\u2028\x85，。“”.!-/_0a1２①ſKsStTrReEvVlLdDmM\x00\xa0é\ufffd\ufdd0\ue000\U0010ffff"]
ODD += ["'s", "'re", "'LL", "  ", "\r\n", "\n\n", "\u0301", "----", "====", "    "]
ODD += ["ร์", "ที่", "नमस्ते", "😀", "👍🏽", "\u200d"]
ODD += [*"한국어다Приветорしてのアイ今天的年认始数取龘𠀀"]
TEXTS = st.lists(st.lists(st.sampled_from(ODD), max_size=12).map("".join), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def ranks(shared):
    return read_ranks(shared / "data" / "tokenizers" / "qwen" / "qwen.tiktoken")


@pytest.fixture(scope="module")
def bpe(ranks):
    return tiktoken.Encoding("qwen", pat_str=PIECE, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module")
def pieces(bpe, ranks):
    return BytePieces(bpe, ranks)


def check(pieces: BytePieces, bpe: tiktoken.Encoding, texts: list[str]) -> None:
    for text, ids in zip(texts, pieces.ids(texts), strict=True):
        assert ids == bpe.encode_ordinary(text), text


@settings(max_examples=500, deadline=None)
@given(texts=TEXTS)
def test_odd_texts(pieces, bpe, texts):
    check(pieces, bpe, texts)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_any_text(pieces, bpe, texts):
    check(pieces, bpe, texts)


def test_tokens_in_a_row(pieces, bpe, ranks):
    """Tokens with parts of characters, made whole or dropped, among others."""
    rng = random.Random(0)
    tokens = list(ranks)
    parts = [token for token in tokens if "\ufffd" in token.decode(errors="replace")]
    rows = [[rng.choice(parts if rng.random() < 0.4 else tokens) for _ in range(6)] for _ in range(20_000)]
    texts = [b"".join(row).decode(errors="ignore") for row in rows]
    check(pieces, bpe, texts)
    check(pieces, bpe, ["".join(rng.choices(ODD, k=rng.randint(0, 12))) for _ in range(20_000)])


def test_characters_around_parts_of_characters(pieces, bpe, ranks):
    """Every place in a token that has a part of a character on one side, with many a character for the part."""
    rng = random.Random(0)
    fillings = [chr(code).encode() for code in rng.sample(range(0x80, 0xD800), 20_000)]
    texts = []
    for token in ranks:
        if token[0] & 0xC0 == 0x80 and len(token) > 1:
            texts += [f + token[1:] for f in rng.sample([f for f in fillings if f[-1] == token[0]], 5)]
    for lead in {token[-1] for token in ranks if token[-1] >= 0xC2 and len(token) > 1}:
        ends = [token for token in ranks if token[-1] == lead and len(token) > 1]
        following = [f for f in fillings if f[0] == lead]
        texts += [end[:-1] + rng.choice(following) for end in ends if following for _ in range(5)]
    assert len(texts) > 500
    check(pieces, bpe, [text.decode(errors="ignore") for text in texts])


def test_a_corpus_and_golden_texts(pieces, bpe, shared):
    corpus = (shared / "data" / "pretrain" / "CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8")
    texts = [unicodedata.normalize("NFC", line) for line in corpus.split("\n")]
    check(pieces, bpe, texts)
    check(pieces, bpe, [corpus[:100_000], corpus[100_000:120_000].replace("，", "\n \n")])


@pytest.mark.parametrize("at_once", [1, 40])
def test_batches_and_memory_change_nothing(pieces, bpe, monkeypatch, at_once):
    monkeypatch.setattr(byte_pieces, "CHARACTERS_AT_ONCE", at_once)
    monkeypatch.setattr(byte_pieces, "MOST_KNOWN", 3)
    texts = ["", "预约定价很好吃", "", "犯罪嫌疑人", " 年环保税", "x" * 100, "预约定价", ""]
    check(pieces, bpe, [*texts, "\ud800", "\ud83d\ude00 我"])
    assert pieces.ids([]) == []


def test_long_pieces_are_not_remembered(bpe, ranks):
    pieces = BytePieces(bpe, ranks)
    check(pieces, bpe, ["啊" * 3 + "ab" * 500, "预约定价"])
    assert set(map(len, pieces._known)) <= set(range(33)) and "预约定价" in pieces._known


def test_most_of_a_text_is_found_without_tiktoken(pieces, shared):
    corpus = (shared / "data" / "pretrain" / "CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8")[:100_000]
    codes = np.frombuffer((corpus + "\n").encode("utf-32-le"), np.uint32)
    ids = pieces._pieces(codes, np.array([len(corpus)]))[2]
    assert (ids >= 0).mean() > 0.9


def trained(text: str, num_merges: int) -> dict[bytes, int]:
    """What BPE training makes of a text, words or not: byte by byte, so that tokens have parts of characters."""
    parts = [bytes([byte]) for byte in text.encode()]
    tokens = [bytes([byte]) for byte in range(256)]
    for _ in range(num_merges):
        pair, _ = Counter(itertools.pairwise(parts)).most_common(1)[0]
        tokens.append(b"".join(pair))
        joined = []
        while parts:
            size = 2 if tuple(parts[:2]) == pair else 1
            joined.append(b"".join(parts[:size]))
            parts = parts[size:]
        parts = joined
    return {token: rank for rank, token in enumerate(tokens)}


# Tokens over the places where a match may end, none over those before them: what is cut too early is joined wrongly.
SMALL = trained("今天天气好。 今天好天气，天好今天 气气天，今天气好.a.a.a.a 好sasasa eaeaea 好天天天今气。" * 3, 45)
assert {b".a", b"sa", b"ea"} < set(SMALL) and not {b" .", b"'s", b"re"} & set(SMALL)


@example(texts=["'rea", "'sa", " .a", "'.a", "今.a", "1.a"])
@settings(max_examples=400, deadline=None)
@given(texts=st.lists(st.text(alphabet="今天气好。， .'saer1\n大", max_size=14), min_size=1, max_size=4))
def test_a_small_vocabulary(texts):
    bpe = tiktoken.Encoding("small", pat_str=PIECE, mergeable_ranks=SMALL, special_tokens={})
    pieces = BytePieces(bpe, SMALL)
    assert pieces._trained
    check(pieces, bpe, texts)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(alphabet="abc今.", max_size=10), min_size=1, max_size=3))
def test_a_vocabulary_that_was_not_trained(texts):
    """BPE does not lead from the bytes of 今 to the token, but tiktoken gives its id where a match is just that."""
    ranks = {token: rank for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), b"bc", "今".encode()])}
    bpe = tiktoken.Encoding("awkward", pat_str=PIECE, mergeable_ranks=ranks, special_tokens={})
    check(BytePieces(bpe, ranks), bpe, texts)
