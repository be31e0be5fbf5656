import itertools

import pytest

from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset
from rotalabs_steer.datasets.splits import split_of, split_pairs
from rotalabs_steer.errors import DatasetError, SteeringWarning


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


def prompts(found):
    return {name: [pair.prompt for pair in split] for name, split in found.items()}


def test_a_test_split_stays_and_validation_is_taken_from_the_pairs_to_train_on():
    given = pairs(20, split=lambda n: "test" if n >= 15 else "train")
    found = prompts(split_pairs(given))
    assert found["test"] == ["q15", "q16", "q17", "q18", "q19"]
    assert found["validation"] == ["q2", "q6", "q10", "q14"]
    assert sorted(prompt for split in found.values() for prompt in split) == sorted(pair.prompt for pair in given), (
        "every pair is in one split"
    )


def test_a_validation_split_stays_and_the_test_split_is_taken_from_the_pairs_to_train_on():
    found = prompts(split_pairs(pairs(20, split=lambda n: "val" if n < 5 else "training")))
    assert found["validation"] == ["q0", "q1", "q2", "q3", "q4"]
    assert found["test"] == ["q7", "q11", "q15", "q19"]
    assert len(found["train"]) == 11


def test_pairs_that_name_no_split_beside_others_are_trained_on():
    names = {0: "test", 1: "Test", 2: "dev", 3: "validation", 4: None, 5: ""}
    found = prompts(split_pairs(pairs(12, split=names.get)))
    assert (found["test"], found["validation"]) == (["q0", "q1"], ["q2", "q3"])
    assert found["train"] == [f"q{n}" for n in range(4, 12)]


@pytest.mark.parametrize(("name", "split"), [
    ("Training", "train"), ("val", "validation"), ("valid", "validation"), ("dev", "validation"),
    ("eval", "validation"), ("holdout", "test"), ("held-out", "test"), ("hold_out", "test"), (" TEST ", "test"),
])  # fmt: skip
def test_names_of_other_datasets_are_understood(name, split):
    assert split_of(ContrastPair("a", "b", {"split": name})) == split


@pytest.mark.parametrize("name", ["extra", 3, True])
def test_a_split_of_unknown_name_is_an_error_and_no_pair_is_dropped(name):
    given = pairs(20, split=lambda n: ("train", "validation", "test", name)[n % 4])
    with pytest.raises(DatasetError, match=f"in the split {name!r}, whose purpose is unknown.*'p3'"):
        split_pairs(given)


def test_a_split_is_taken_by_whole_categories():
    given = pairs(40, category=lambda n: f"c{n % 10}", split=lambda n: "test" if n % 10 == 9 else None)
    found = split_pairs(given)
    topics = {name: {pair.category for pair in split} for name, split in found.items()}
    assert topics["test"] == {"c9"}
    assert topics["validation"] == {"c2", "c6"}
    assert not topics["train"] & topics["validation"]


def test_too_few_pairs_to_train_on_are_an_error():
    with pytest.raises(DatasetError, match="would be split into 0 for train, 0 for validation, 12 for test"):
        split_pairs(pairs(12, split=lambda n: "test"))
    with pytest.raises(DatasetError, match="would be split into 1 for train, 0 for validation, 11 for test"):
        split_pairs(pairs(12, split=lambda n: "test" if n else None))
    with pytest.raises(DatasetError, match="would be split into 0 for train, 6 for validation, 6 for test"):
        split_pairs(pairs(12, split=lambda n: "test" if n % 2 else "val"))


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


def test_pairs_with_one_prompt_are_shared_out_to_one_split():
    for category in (lambda n: "", lambda n: f"c{n % 11}"):
        given = ContrastPairDataset("calm", [
            ContrastPair(f"p{n}", f"n{n}", prompt=f"q{n // 2 % 15}", category=category(n)) for n in range(60)
        ])  # fmt: skip
        found = prompts(split_pairs(given))
        assert all(found.values())
        assert sum(map(len, found.values())) == 60
        for one, other in itertools.combinations(found.values(), 2):
            assert not set(one) & set(other)


def test_the_same_prompt_after_another_system_message_is_another_prompt():
    given = ContrastPairDataset("calm", [
        ContrastPair(f"p{n}", f"n{n}", prompt="q", system=f"You are {n}.") for n in range(10)
    ])  # fmt: skip
    assert {name: len(split) for name, split in split_pairs(given).items()} == {"train": 6, "validation": 2, "test": 2}


def test_pairs_that_the_user_put_into_two_splits_are_named():
    split = {0: "train", 1: "validation", 2: "test"}
    twice = [ContrastPair("p0", "n0", {"split": "test"}, prompt="q0")]
    given = ContrastPairDataset("calm", [*pairs(12, split=lambda n: split[n % 3]), *twice])
    with pytest.warns(SteeringWarning, match=r"1 pairs of 'calm' are in two splits.*'p0' \(test\). Remove them"):
        found = split_pairs(given)
    assert sum(map(len, found.values())) == 13
