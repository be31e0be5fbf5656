import functools
import re
from pathlib import Path

import pytest

from rotalabs_steer import datasets
from rotalabs_steer.datasets.overlap import overlapping_rows
from rotalabs_steer.datasets.quality import LENGTH_RATIOS, MOST_SHARED_PERCENT, TELLING_ACCURACY
from rotalabs_steer.errors import OptionError

DOCS = Path(__file__).parents[2] / "docs"
DATA = Path(datasets.__file__).parent / "data"


@functools.cache
def measured(name, tokenizer):
    return datasets.check_pairs(datasets.load_behavior(name), tokenizer, datasets.describe_behavior(name)["markers"])


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


@pytest.mark.real_model
@pytest.mark.parametrize("name", datasets.behavior_names())
def test_pairs_differ_in_the_behaviour_alone(name, tokenizer):
    about, report = datasets.describe_behavior(name), measured(name, tokenizer)
    assert [finding for finding in report.findings if finding.measure not in {"length", "words"}] == []
    assert len(report.categories) >= 8
    low, high = LENGTH_RATIOS
    assert low <= report.length_ratio <= high or name == "conciseness"
    card = (DATA / name / "card.md").read_text("utf-8")
    (stated,) = re.findall(r"A bag of words without the markers reaches (\d\.\d\d) on the test split", card)
    accuracy = report.bag_of_words.accuracy
    assert float(stated) == pytest.approx(accuracy, abs=0.03)
    cue = about.get("unavoidable_cue")
    assert (cue is not None) == (accuracy >= TELLING_ACCURACY), "a cue is declared where there is one, and only there"
    assert cue is None or cue in card


@pytest.mark.parametrize("name", datasets.behavior_names())
def test_no_evaluation_prompt_is_among_the_pairs(name):
    prompts = [pair.prompt for pair in datasets.load_behavior(name)]
    prompts += [example.prompt for example in datasets.load_evaluation(name)]
    assert overlapping_rows([(prompt,) for prompt in prompts], MOST_SHARED_PERCENT, pad=True) == []


@pytest.mark.real_model
def test_the_documented_figures_are_the_measured_ones(tokenizer):
    page = (DOCS / "datasets.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (\d+) \| (\d+) \| (\d\.\d\d) \| (\d\.\d\d) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == datasets.behavior_names()
    for name, pairs, categories, ratio, accuracy in rows:
        report = measured(name, tokenizer)
        assert (report.pairs, len(report.categories)) == (int(pairs), int(categories))
        assert report.length_ratio == pytest.approx(float(ratio), abs=0.01)
        assert report.bag_of_words.accuracy == pytest.approx(float(accuracy), abs=0.03)


def test_every_behaviour_has_its_documented_loader():
    loaders = [getattr(datasets, name) for name in datasets.__all__ if re.fullmatch("load_.+_pairs", name)]
    assert sorted(load().behavior for load in loaders) == datasets.behavior_names()
    assert len(datasets.load_hierarchy_pairs("test")) == len(datasets.load_behavior("instruction_hierarchy", "test"))


def test_unknown_names_are_errors():
    with pytest.raises(OptionError, match=r"Unknown behaviour 'clam'. Built in are: .*formality"):
        datasets.load_behavior("clam")
    with pytest.raises(OptionError, match="Unknown split 'dev'"):
        datasets.load_behavior("formality", "dev")
