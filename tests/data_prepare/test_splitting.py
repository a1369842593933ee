"""Groups, splits that share none, and the substring finder against brute force."""

import random

import pytest

from keju.data_prepare.splitting import assert_no_shared_group, finder, group_items, split_groups


def test_items_that_share_a_key_through_others_are_one_group():
    groups = group_items([["a"], ["b"], ["a", "c"], [], ["c", "d"], ["b"], ["d"]])
    assert groups[0] == groups[2] == groups[4] == groups[6]
    assert groups[1] == groups[5]
    assert len(set(groups)) == 3


def test_random_groups_equal_connected_components():
    rng = random.Random(0)
    keys = [[rng.randrange(60) for _ in range(rng.randrange(3))] for _ in range(80)]
    groups = group_items(keys)
    reached = [{item} for item in range(len(keys))]  # transitive closure, the slow way
    for _ in keys:
        for item, own in enumerate(keys):
            reached[item] |= {other for other, others in enumerate(keys) if set(own) & set(others)}
            reached[item] |= set().union(*(reached[other] for other in reached[item]))
    for item in range(len(keys)):
        assert {other for other in range(len(keys)) if groups[other] == groups[item]} == reached[item]


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_group_and_have_their_sizes(seed):
    rng = random.Random(seed)
    groups = [rng.randrange(150) for _ in range(400)] + [1000] * 50
    splits = split_groups(groups, {"dev": 20, "test": 40}, "train", seed)
    assert splits.count("dev") == 20 and splits.count("test") == 40 and splits.count("train") == 390
    assert {splits[-1]} == set(splits[-50:]) == {"train"}  # a group larger than a split never goes there
    by_split = {name: {group for group, split in zip(groups, splits, strict=True) if split == name} for name in splits}
    assert not by_split["dev"] & by_split["test"] | by_split["train"] & (by_split["dev"] | by_split["test"])


def test_split_follows_the_seed():
    groups = list(range(100))
    first, again, other = (split_groups(groups, {"test": 50}, "train", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_shared_group_is_found():
    assert_no_shared_group([1, 1, 2], ["train", "train", "test"])
    with pytest.raises(AssertionError, match="group 1 is in the splits train and test"):
        assert_no_shared_group([1, 2, 1], ["train", "test", "test"])


def test_finder_equals_brute_force():
    rng = random.Random(0)
    patterns = {"".join(rng.choices("甲乙丙", k=rng.randint(2, 6))) for _ in range(40)}
    found_in = finder(patterns)
    for _ in range(200):
        text = "".join(rng.choices("甲乙丙丁", k=rng.randint(0, 20)))
        assert found_in(text) == {pattern for pattern in patterns if pattern in text}


def test_finder_of_nothing_finds_nothing():
    assert finder([])("画龙点睛") == set()
