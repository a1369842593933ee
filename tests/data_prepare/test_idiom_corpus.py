"""The idiom corpus: nothing held out is seen in training, answers are what their scores say, seeds decide all."""

import json
from collections import Counter

import pytest

from keju.data_prepare.corpora import idiom
from keju.data_prepare.data_set import corpus_module
from keju.data_prepare.idiom_dictionary import Idiom, clean, mended, read_entries
from keju.data_prepare.step import Step
from keju.records.formats import detect
from keju.records.record import RankedRecord, TextRecord

TRAINING = ("pretrain_train.jsonl", "ranked_train.jsonl", "prompts_train.jsonl")
HELD_OUT = {"dev": "ranked_dev.jsonl", "test": "ranked_test.jsonl"}


@pytest.fixture(scope="module")
def dictionary():
    return read_entries()


@pytest.fixture(scope="module")
def build(dictionary):
    """Build with every n-th entry of the dictionary, so that all tests together take seconds."""

    def build_data_set(seed=1, max_items=None, every=20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(idiom, "read_entries", lambda: dictionary[::every])
            return idiom.build(seed=seed, max_items=max_items, track=lambda items, label: items)

    return build_data_set


@pytest.fixture(scope="module")
def whole(build):
    return build(every=1)


@pytest.fixture(scope="module", params=[150, 2000], ids=str)
def data_set(request, build):
    return build(max_items=request.param, every=10)


def explanations_of(rows):
    return {row["idiom"]: row["answers"][0]["answer"] for row in rows}


def text_of(files, names):
    return "\n".join(json.dumps(row, ensure_ascii=False) for name in names for row in files[name])


@pytest.mark.parametrize("split", HELD_OUT)
def test_no_held_out_idiom_or_explanation_occurs_in_training(data_set, split):
    assert not leaks(data_set, split)


@pytest.mark.parametrize("split", HELD_OUT)
def test_nothing_leaks_in_the_whole_dictionary(whole, split):
    assert not leaks(whole, split, sample=50)


def leaks(data_set, split, sample=None):
    """Held-out idioms that occur, or whose explanations occur, anywhere in the training files (the slow, sure way)."""
    training = text_of(data_set.files, TRAINING) + "\n".join(data_set.vocabulary_texts)
    held_out = list(explanations_of(data_set.files[HELD_OUT[split]]).items())[:sample]
    assert held_out
    return [word for word, text in held_out if word in training or text.rstrip("。！？）…") in training]


def test_no_test_idiom_occurs_in_dev(data_set):
    dev = text_of(data_set.files, ("pretrain_dev.jsonl", "ranked_dev.jsonl", "idiom_mc_dev.jsonl"))
    test = explanations_of(data_set.files["ranked_test.jsonl"])
    assert not [word for word, text in test.items() if word in dev or text in dev]


def test_no_variant_of_a_held_out_idiom_is_trained_on(data_set):
    def variants(name):
        return {"".join(sorted(row["idiom"])) for row in data_set.files[name]}

    seen = [variants(f"{name}.jsonl") for name in ("ranked_train", "prompts_train", "ranked_dev", "ranked_test")]
    for number, left in enumerate(seen):
        for right in seen[number + 1 :]:
            assert not left & right


def test_every_row_is_a_record_of_its_kind(data_set):
    for name, rows in data_set.files.items():
        for row in rows:
            if name.startswith("idiom_mc"):
                assert list(row) == ["question", "choices", "answer", "idiom"]
            else:
                assert isinstance(detect(row), TextRecord if name.startswith("pretrain") else RankedRecord)


def test_answers_are_what_their_scores_say(data_set):
    for split in ("ranked_train", "ranked_dev", "ranked_test", "prompts_train"):
        rows = data_set.files[f"{split}.jsonl"]
        idioms_with = {}
        for word, explanation in explanations_of(rows).items():
            idioms_with.setdefault(explanation, set()).add(word)
        for row in rows:
            texts = [answer["answer"] for answer in row["answers"]]
            assert row["prompt"] == f"解释成语“{row['idiom']}”的意思。"
            assert len(set(texts)) == 4
            assert Counter(answer["score"] for answer in row["answers"])[1] == 1
            assert row["answers"][0]["score"] == 1 and row["idiom"] in idioms_with[texts[0]]
            for answer in row["answers"][1:]:
                others = idioms_with[answer["answer"]]  # of this split only
                assert row["idiom"] not in others
                shares = [bool(set(row["idiom"]) & set(other)) for other in others]
                assert any(shares) if answer["score"] == 0 else answer["score"] == -1 and not all(shares)


def test_most_records_have_two_near_misses(whole):
    rows = whole.files["ranked_train.jsonl"]
    scores = Counter(tuple(answer["score"] for answer in row["answers"]) for row in rows)
    assert scores[1, 0, 0, -1] > 0.95 * len(rows)


def test_multiple_choice_is_answerable_and_balanced(data_set):
    for split in ("dev", "test"):
        rows = data_set.files[f"idiom_mc_{split}.jsonl"]
        right = explanations_of(data_set.files[f"ranked_{split}.jsonl"])
        assert len(rows) == data_set.splits[split]
        for row in rows:
            assert len(set(row["choices"])) == 4
            assert row["choices"][row["answer"]] == right[row["idiom"]]
            assert set(row["choices"]) <= set(right.values())
            assert row["idiom"] in row["question"]
        counts = Counter(row["answer"] for row in rows)
        assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= 1


def test_sizes_of_splits(build, whole):
    data_set = build(max_items=1000)
    assert data_set.splits == {"train": 750, "prompts": 100, "dev": 50, "test": 100}
    assert len(data_set.files["pretrain_train.jsonl"]) == 850
    assert {name: whole.splits[name] for name in ("prompts", "dev", "test")} == {
        "prompts": 2000, "dev": 500, "test": 1000}  # fmt: skip
    assert whole.splits["train"] > 26_000


def test_pretraining_texts_hold_an_idiom_and_its_explanation(build):
    files = build(max_items=1000).files
    explanations = explanations_of(files["ranked_train.jsonl"]) | explanations_of(files["prompts_train.jsonl"])
    texts = [row["text"] for row in files["pretrain_train.jsonl"]]
    for text in texts:
        assert any(f"成语：{word}。" in text or f"成语是：{word}。" in text for word in explanations), text
        assert any(text.count(explanation) for explanation in explanations.values()), text
        assert "：无。" not in text and "～" not in text and "{" not in text
    twice = [any(max(map(text.count, pair)) > 1 for pair in explanations.items()) for text in texts]
    assert sum(twice) > 0.85 * len(texts)
    assert 0.04 < sum("出处：" in text for text in texts) / len(texts) < 0.12


def test_seed_decides(build):
    first, again, other = build(seed=1, max_items=150), build(seed=1, max_items=150), build(seed=2, max_items=150)
    assert first.files == again.files
    assert first.files != other.files


@pytest.mark.parametrize("seed", range(20))
def test_smallest_size_works_or_says_what_to_raise(build, seed):
    try:
        data_set = build(seed=seed, max_items=idiom.MIN_IDIOMS)
    except ValueError as error:
        assert "max_idioms: " in str(error)
    else:
        assert sum(data_set.splits.values()) == idiom.MIN_IDIOMS


def test_too_few_idioms(build):
    with pytest.raises(ValueError, match="^max_idioms: must be at least 100"):
        build(max_items=99)


def test_unknown_corpus_lists_the_right_ones():
    with pytest.raises(ValueError, match="^corpus: 'idom' is unknown; there are: .*idiom"):
        corpus_module("idom")
    assert corpus_module("idiom") is idiom


def test_leak_is_an_assertion():
    member = idiom.Member("画龙点睛", "比喻守株待兔的反面。", "", "", group=1)
    held_out = idiom.Member("守株待兔", "比喻不主动努力。", "", "", group=2)
    with pytest.raises(AssertionError, match="画龙点睛 leaks a held-out idiom"):
        idiom._without_held_out([member], [held_out], Step("split"))


def test_source_that_names_a_held_out_idiom_is_left_out_and_reported():
    member = idiom.Member("画龙点睛", "比喻点明实质。", "见守株待兔之书。", "画得好。", group=1)
    held_out = idiom.Member("守株待兔", "比喻不主动努力。", "", "", group=2)
    step = Step("split")
    (kept,) = idiom._without_held_out([member], [held_out], step)
    assert (kept.derivation, kept.example) == ("", "画得好。")
    assert step.as_row()["dropped"]["source or example with a held-out idiom"]["rows"] == 1


WORDS = {"碍手碍脚", "安居乐业", "平安无事", "暗室亏心"}
MENDED = {
    "无": "",
    "意译为无间”，即痛苦无有间断之意。": "意译为无间，即痛苦无有间断之意。",
    "妨碍别人做事。同碍手碍脚”。": "妨碍别人做事。",
    "犹安居乐业。指安定愉快地生活和劳动。": "指安定愉快地生活和劳动。",
    "犹言平安无事。": "",
    "比喻决断。同宁为鸡口，无为朋”。": "比喻决断。",
    "案同按”，握住。": "案同按，握住。",
    "心情孤寂凄凉◇比喻女子对爱情的坚贞。": "心情孤寂凄凉。后比喻女子对爱情的坚贞。",
    "终至堕入～。★《炼狱杂记》": "终至堕入挨门逐户。（《炼狱杂记》）",
    "含“引号”的。": "含“引号”的。",
    "[汉]班固": "（汉）班固。",
}


@pytest.mark.parametrize("text", MENDED)
def test_fields_are_mended(text):
    assert mended(text, "挨门逐户", WORDS) == MENDED[text]


def entry(word, explanation):
    return {"word": word, "explanation": explanation, "derivation": "无", "example": "等×待～。"}


def test_broken_entries_are_dropped_for_a_reason():
    step = Step("clean")
    good = entry("守株待兔", "比喻不主动努力，希望得到意外的收获。")
    bad = [entry("方寸之地", "指心。"), entry("不欢而散", "分手≤不愉快地分手。"), entry("闭门羹", "让客人吃闭门羹。")]
    idioms = clean([good, *bad, good], step, lambda items, label: items)
    assert idioms == [Idiom("守株待兔", "比喻不主动努力，希望得到意外的收获。", "", "")]
    assert (step.rows_in, step.rows_out) == (5, 1)
    assert dict(step.dropped) == {
        "explanation too short, or only a reference": 1,
        "broken characters": 1,
        "explained by itself": 1,
        "duplicate": 1,
    }


def test_all_entries_are_read(dictionary):
    assert len(dictionary) > 30_000
    assert {"word", "explanation", "derivation", "example"} <= dictionary[0].keys()
