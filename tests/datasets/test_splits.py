import pytest

from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset
from rotalabs_steer.datasets.splits import split_pairs
from rotalabs_steer.errors import DatasetError


def pairs(count, category=lambda number: "", split=None):
    return ContrastPairDataset("calm", [
        ContrastPair(f"p{n}", f"n{n}", {"split": split(n)} if split else {}, prompt=f"q{n}", category=category(n))
        for n in range(count)
    ])  # fmt: skip


def test_splits_that_the_pairs_name_are_kept():
    named = split_pairs(pairs(12, split=lambda n: ("train", "validation", "test")[n % 3]))
    assert {name: [pair.prompt for pair in split][:2] for name, split in named.items()} == {
        "train": ["q0", "q3"], "validation": ["q1", "q4"], "test": ["q2", "q5"],
    }  # fmt: skip


def test_pairs_without_splits_are_shared_out():
    sizes = {name: len(split) for name, split in split_pairs(pairs(20)).items()}
    assert sizes == {"train": 12, "validation": 4, "test": 4}
    by_category = split_pairs(pairs(60, category=lambda n: f"c{n % 10}"))
    topics = {name: {pair.category for pair in split} for name, split in by_category.items()}
    assert sum(map(len, topics.values())) == 10, "no category is in two splits"


def test_pairs_that_cannot_be_tuned_are_an_error():
    with pytest.raises(DatasetError, match=r"at least 10 pairs, all with prompts.*'calm' has 9, 0 without"):
        split_pairs(pairs(9))
    with pytest.raises(DatasetError, match="has 10, 10 without a prompt"):
        split_pairs(ContrastPairDataset("x", [ContrastPair("a", "b")] * 10))
