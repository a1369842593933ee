"""Weights of sources: parsing, and how often an item occurs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.mixing import copies, parse_mix

SOURCES = ["alpaca.json", "sft/belle.json", "sft/moss.jsonl", "old/moss.jsonl", "a:b.json"]


def test_names_are_sources_file_names_or_folders():
    weights = parse_mix(["alpaca.json:2", "belle.json:0.5", "old/moss.jsonl:3", "a:b.json:1e-3"], SOURCES)
    assert weights == {
        "alpaca.json": 2,
        "sft/belle.json": 0.5,
        "old/moss.jsonl": 3,
        "a:b.json": 0.001,
        "sft/moss.jsonl": 1,
    }
    assert (
        parse_mix(["sft/:0.1"], SOURCES)["sft/belle.json"] == parse_mix(["./sft:0.1"], SOURCES)["sft/moss.jsonl"] == 0.1
    )
    assert set(parse_mix([], SOURCES).values()) == {1.0}


BAD = {
    "alpaca.json": "mix: alpaca.json: expected a name and a weight, such as belle.json:0.5",
    ":2": "expected a name and a weight",
    "alpaca.json:": "the weight must be a number above 0, at most 1000, not ''",
    "alpaca.json:two": "not 'two'",
    "alpaca.json:0": "not '0'",
    "alpaca.json:-1": "not '-1'",
    "alpaca.json:nan": "not 'nan'",
    "alpaca.json:inf": "not 'inf'",
    "alpaca.json:1e9": "at most 1000",
    "alpca.json:2": "no source 'alpca.json'; there are a:b.json, alpaca.json, old/moss.jsonl",
    "moss.jsonl:2": "moss.jsonl may be old/moss.jsonl or sft/moss.jsonl; write which",
}


@pytest.mark.parametrize("entry", BAD)
def test_mistakes_name_the_flag(entry):
    with pytest.raises(ValueError) as caught:
        parse_mix([entry], SOURCES)
    assert str(caught.value).startswith(f"mix: {entry}: ") and BAD[entry] in str(caught.value)


def test_a_source_has_one_weight():
    with pytest.raises(ValueError, match=r"^mix: sft:2: sft/belle.json has a weight already$"):
        parse_mix(["belle.json:1", "sft:2"], SOURCES)
    with pytest.raises(ValueError, match="there are none"):
        parse_mix(["a:1"], [])


@given(st.floats(0.001, 1000), st.text(), st.integers(0, 9))
def test_copies_are_the_weight_rounded_down_or_up(weight, key, seed):
    assert copies(weight, key, seed) in (int(weight), int(weight) + 1)
    assert copies(float(int(weight)), key, seed) == int(weight)


def test_shares_are_the_weight_in_the_mean_and_differ_by_seed():
    keys = [f"group {n}" for n in range(20_000)]
    for weight in (0.1, 0.5, 2.25):
        mean = sum(copies(weight, key, 1) for key in keys) / len(keys)
        assert abs(mean - weight) < 0.02  # 5 standard deviations at most
    drawn = [{key for key in keys if copies(weight, key, seed)} for weight, seed in ((0.5, 1), (0.2, 1), (0.5, 2))]
    assert drawn[1] < drawn[0] and not drawn[0] <= drawn[2] and len(drawn[0] & drawn[2]) < 5500


def test_what_is_drawn_stays_the_same():
    """In every process, on every machine and in every version."""
    drawn = "111100110111010001011010"
    assert "".join(str(copies(0.5, f"组{number}", 7)) for number in range(24)) == drawn
