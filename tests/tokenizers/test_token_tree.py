"""The tree of tokens against a plain search, with few letters so that much of what can happen does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.tokenizers import token_tree
from keju.tokenizers.token_tree import NO_TOKEN, TOKEN_WITHOUT_ID, TokenTree

LETTERS = "ab天\U0010ffff"
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=6), min_size=1, max_size=12, unique=True)


def plain(strings: list[str], text: str, closed: list[bool], longest: int) -> list[tuple[int, int]]:
    found = []
    for begin in range(len(text)):
        limit = closed.index(True, begin + 1)
        best = (NO_TOKEN, begin + 1)
        for end in range(begin + 1, min(limit, begin + longest) + 1):
            if text[begin:end] in strings:
                best = strings.index(text[begin:end]), end
        longer = [string for string in strings if len(string) > longest]
        if limit - begin > longest and any(string[:longest] == text[begin : begin + longest] for string in longer):
            best = TOKEN_WITHOUT_ID, limit
        found.append(best)
    return found


@pytest.mark.parametrize("longest", [2, 3, 16])
@settings(max_examples=150, deadline=None)
@given(strings=WORDS, text=st.text(LETTERS + "今", min_size=1, max_size=30), data=st.data())
def test_the_longest_string_at_each_place(longest, strings, text, data):
    marks = data.draw(st.lists(st.booleans(), min_size=len(text) - 1, max_size=len(text) - 1))
    closed = [True, *marks, True]
    before, token_tree.LONGEST = token_tree.LONGEST, longest
    try:
        tree = TokenTree(strings, list(range(len(strings))))
    finally:
        token_tree.LONGEST = before
    codes = np.array([ord(character) for character in text], np.uint32)
    ids, ends = tree.longest(codes, np.array(closed))
    assert list(zip(ids.tolist(), ends.tolist(), strict=True)) == plain(strings, text, closed, longest)


def test_a_full_table_still_finds_every_key():
    """Keys that want the same place move on to the next one, beyond the end to the beginning."""
    rng = np.random.default_rng(0)
    keys = rng.choice(1 << 20, 5000, replace=False).astype(np.uint64) + np.uint64(1)
    table, places = token_tree._hash_table(keys)
    assert np.array_equal(table[places], keys)
    assert len(set(places.tolist())) == len(keys)
    assert (places != token_tree._places(table, keys)).any()
    assert np.array_equal(token_tree._find(table, keys), places)
    others = np.setdiff1d(np.arange(1, 1 << 20, 7, dtype=np.uint64), keys)
    assert (token_tree._find(table, others) == -1).all()
