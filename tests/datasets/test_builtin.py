import pytest

from rotalabs_steer import datasets
from rotalabs_steer.errors import OptionError


@pytest.mark.parametrize("name", datasets.behavior_names())
def test_built_in_behaviours_are_complete(name):
    about = datasets.describe_behavior(name)
    assert about["name"] == name
    assert about["positive"]
    assert about["negative"]
    assert about["licence"] == "Apache-2.0"
    splits = {split: datasets.load_behavior(name, split) for split in ("train", "validation", "test")}
    assert len(splits["train"]) >= 60
    assert len(splits["validation"]) >= 20
    assert len(splits["test"]) >= 20
    assert sum(map(len, splits.values())) == len(datasets.load_behavior(name))
    topics = {split: {pair.category for pair in pairs} for split, pairs in splits.items()}
    assert sum(map(len, topics.values())) == len(set().union(*topics.values())), "a topic is in two splits"
    examples = datasets.load_evaluation(name)
    assert len(examples) >= 20
    assert abs(len(examples.positive_examples) - len(examples.negative_examples)) <= 2


def test_every_behaviour_has_its_documented_loader():
    loaders = [getattr(datasets, name) for name in datasets.__all__ if name.endswith("_pairs")]
    assert sorted(load().behavior for load in loaders) == datasets.behavior_names()
    assert len(datasets.load_hierarchy_pairs("test")) == len(datasets.load_behavior("instruction_hierarchy", "test"))


def test_unknown_names_are_errors():
    with pytest.raises(OptionError, match=r"Unknown behaviour 'clam'. Built in are: .*formality"):
        datasets.load_behavior("clam")
    with pytest.raises(OptionError, match="Unknown split 'dev'"):
        datasets.load_behavior("formality", "dev")
