"""Many texts at once against jieba itself, one at a time: the same words, always."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keju.tokenizers import jieba_segmenter
from keju.tokenizers.jieba_segmenter import PATCHED_BLOCK, RELEASED_BLOCK, Rows, cut, join_words

STAND_INS = {" ": "\u2582", "\n": "\u2583"}


def joined(words) -> str:
    return " ".join(word.translate(str.maketrans(STAND_INS)) for word in words)


def at_once(texts: list[str], block: re.Pattern = PATCHED_BLOCK) -> list[str]:
    """All texts by rows of numpy, however few they are."""
    return jieba_segmenter._join_batch(texts, block, STAND_INS)


def assert_equal_to_jieba(texts: list[str], block: re.Pattern = PATCHED_BLOCK) -> None:
    for text, mine in zip(texts, at_once(texts, block), strict=True):
        assert mine == joined(cut(text, block)), text


@pytest.fixture(scope="module")
def real_texts(shared) -> list[str]:
    return (shared / "data" / "pretrain" / "CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")


def odd_texts(count: int) -> list[str]:
    rng = random.Random(0)
    pieces = ["C++", "a_b", "AT&T", "3.14", "5%", "hello", "1.5.2", "%", "\r\n", "\r", "\x00", "\u3000", "😀", "\ud800"]
    pieces += [*"<>-%▂▁龘𠀀\u9fd5\u9fd6的，。 \n\t", "<<", "<-", "北京大学", "研究生命起源", "长春市长", "来到杭研大厦"]
    return ["".join(rng.choices(pieces, k=rng.randint(0, 15))) for _ in range(count)]


def test_words_equal_those_of_the_real_jieba(monkeypatch):
    """Its own `cut`, as it is released and with the patch; `cut` here, which other tests compare with, as well."""
    import jieba

    reference = jieba.Tokenizer()
    reference.FREQ, reference.total = reference.gen_pfdict(reference.get_dict_file())
    reference.initialized = True
    for token in ("<s>", "</s>", "<unk>", "<sep>", "<pad>", "<eot>"):
        reference.add_word(token)
    texts = [text for text in odd_texts(2000) if not re.search("<(/?s|unk|sep|pad|eot)>", text)]
    for block in (RELEASED_BLOCK, PATCHED_BLOCK):
        monkeypatch.setattr(jieba, "re_han_default", block)
        expected = [joined(reference.cut(text)) for text in texts]
        assert at_once(texts, block) == expected
        assert [joined(cut(text, block)) for text in texts] == expected
    assert jieba_segmenter.RELEASED_BLOCK.pattern == r"([\u4E00-\u9FD5a-zA-Z0-9+#&\._%\-]+)"


def test_real_texts(real_texts):
    assert_equal_to_jieba(real_texts[:400])
    assert_equal_to_jieba(real_texts[400:500], RELEASED_BLOCK)


def test_ties_are_broken_alike():
    """A way of equal probability is taken or not by the last bit of a sum over the block."""
    assert_equal_to_jieba([character * length for character in "啊哈一人大中" for length in range(1, 120)])


@pytest.mark.parametrize(
    "characters", ["的一是在不了有和人这", "龘鿕丂乄乆乇乑乛乣乨", "张王李赵刘陈伟芳娜敏", "中a1.%北", "一丁七"]
)
def test_runs_of_single_characters(characters):
    rng = random.Random(1)
    assert_equal_to_jieba(["".join(rng.choices(characters, k=rng.randint(1, 30))) for _ in range(1500)])


def test_any_han_characters():
    rng = random.Random(2)
    texts = ["".join(chr(rng.randint(0x4E00, 0x9FD5)) for _ in range(rng.randint(1, 20))) for _ in range(2000)]
    assert_equal_to_jieba(texts)


def test_words_of_the_dictionary_next_to_each_other():
    rng = random.Random(3)
    words = list(jieba_segmenter.dictionary().FREQ)
    assert_equal_to_jieba(["".join(rng.choices(words, k=rng.randint(1, 8))) for _ in range(2000)])


def test_a_run_that_is_a_word_itself_stays_single():
    """The one case in which jieba does not ask the hidden Markov model: rare words of frequent characters."""
    frequencies = jieba_segmenter.dictionary().FREQ
    pairs = [word for word, count in frequencies.items() if len(word) == 2 and 0 < count < 4]
    single = [word for word in pairs if joined(cut(word, PATCHED_BLOCK)) == " ".join(word)]
    assert len(single) > 10
    assert_equal_to_jieba(single)
    assert_equal_to_jieba([f"{word}，{word}a" for word in single])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("的北京大学<>a1.% \r\n"), max_size=30), min_size=1)
)
@example(["", "", "a", ""])
@example(["\r", "\n", "\r\n\n\r\r\n"])
@example(["a\r", "\nb"])
def test_odd_strings(texts):
    assert_equal_to_jieba(texts)
    assert_equal_to_jieba(texts, RELEASED_BLOCK)


def test_long_blocks(real_texts):
    text = re.sub(r"[^\u4e00-\u9fd5]", "", "".join(real_texts[:20]))
    assert len(text) > 3000
    longest = jieba_segmenter.LONGEST_BLOCK
    assert_equal_to_jieba([text, text[:longest], text[: longest + 1], "好" + text[1:longest] + "。" + text, "短"])


def test_batches_are_joined_and_small_ones_left_to_jieba(real_texts, monkeypatch):
    texts = [*real_texts[:40], "", *odd_texts(20)]
    whole = join_words(texts, PATCHED_BLOCK, STAND_INS)
    assert whole == [joined(cut(text, PATCHED_BLOCK)) for text in texts]
    monkeypatch.setattr(jieba_segmenter, "CHARACTERS_AT_ONCE", 1000)
    assert join_words(texts, PATCHED_BLOCK, STAND_INS) == whole
    monkeypatch.setattr(jieba_segmenter, "_join_batch", None)
    assert join_words(["你好 世界"], PATCHED_BLOCK, STAND_INS) == ["你好 \u2582 世界"]
    assert join_words([], PATCHED_BLOCK, STAND_INS) == []


def test_no_word_of_the_dictionary_has_an_angle_bracket():
    """What makes splitting at special tokens first the same as cutting with them in the dictionary."""
    assert not [word for word in jieba_segmenter.dictionary().FREQ if "<" in word or ">" in word]


def test_every_word_of_the_dictionary_is_found():
    """No two beginnings of words share a place in the table."""
    words, frequencies = jieba_segmenter._words(), jieba_segmenter.dictionary().FREQ
    longer = [word for word in frequencies if len(word) > 1]
    assert (words.keys >= 0).sum() == len(longer)
    states = {word: state for state, word in enumerate(frequencies)}
    before = np.array([states[word[:-1]] for word in longer])
    last = np.array([ord(word[-1]) for word in longer])
    assert (words.next(before, last) == [states[word] for word in longer]).all()
    assert (words.next(before, last * 0 + ord("<")) == -1).all()


def test_rows():
    rows = Rows(np.array([1, 3, 2]))
    assert rows.order.tolist() == [1, 2, 0]
    assert rows.row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert rows.column.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]


def test_words_that_a_user_forbids_count_the_same_for_many_texts_and_for_one():
    code = """
from keju.tokenizers.jieba_segmenter import PATCHED_BLOCK, cut, join_words
import jieba.finalseg
texts = ["杭研" * 10 + "，来到杭研大厦。"] * 100
before = join_words(texts, PATCHED_BLOCK, {})
jieba.finalseg.add_force_split("杭研")
after = join_words(texts, PATCHED_BLOCK, {})
assert after == [" ".join(cut(text, PATCHED_BLOCK)) for text in texts]
assert after != before
print("fine")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "fine", result.stderr


def test_jieba_is_loaded_only_when_a_text_is_cut():
    code = "import sys, keju.tokenizers.pangu; print('jieba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "False", result.stderr
