import json

import numpy as np
import pytest

from rotalabs_steer import MultiVectorInjector, SteeringVectorSet
from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset, load_behavior, load_formality_pairs
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.evaluation.coherence import CoherenceProbe
from rotalabs_steer.evaluation.text_judge import TextJudge
from rotalabs_steer.evaluation.tuning import _apart, split_pairs, tune


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


def test_finalists_are_not_neighbours():
    scores = {3: 1.0, 4: 0.9, 5: 0.8, 9: 0.1, 10: 0.2}
    assert _apart(scores, 3) == [3, 5, 10]


def test_the_judge_learns_the_sides_from_their_words():
    judge = TextJudge.fit(list(load_formality_pairs("train")))
    assert judge.accuracy(list(load_formality_pairs("test"))) > 0.9
    formal, casual = judge(["It is advisable to consult a physician.", "Hey, you'd better grab a doc, okay?"])
    assert formal > 0 > casual
    with pytest.raises(DatasetError, match="do not differ, so no judge can learn"):
        TextJudge.fit([ContrastPair("same", "same", prompt="a", negative_prompt="b")])


@pytest.mark.real_model
def test_a_behaviour_is_tuned(smollm, tokenizer, tmp_path):
    dataset = load_behavior("formality")
    few = ContrastPairDataset("formality", [
        pair for split in ("train", "validation", "test")
        for pair in [p for p in dataset if p.metadata["split"] == split][:8]
    ])  # fmt: skip
    tuned = tune(smollm, tokenizer, few, finalists=2, prompts=4, max_new_tokens=12, show_progress=False)
    assert tuned.layer_index in range(8, 24)
    assert len(tuned.first_order_scores) == 30
    assert len(tuned.finalists) == 2
    assert tuned.curve.effect.low > 0
    assert f"layer {tuned.layer_index}: log-odds" in str(tuned)
    assert ("does not steer" in str(tuned)) is not tuned.steers
    injector = MultiVectorInjector(smollm, {"formality": tuned.vectors}, {"formality": 1.0})
    probe = CoherenceProbe(smollm, tokenizer)
    costs = []
    for sign in (1.0, -1.0):
        injector.set_strength("formality", sign)
        with injector:
            costs.append(probe.cost())
    assert np.mean(costs) == pytest.approx(tuned.budget, rel=0.1), "strength 1.0 spends the budget"
    tuned.vectors.save(tmp_path / "formality")
    loaded = SteeringVectorSet.load(tmp_path / "formality")
    assert loaded.get_best().layer_index == tuned.layer_index
    assert json.loads(json.dumps(loaded.metadata["effect"]))["low"] > 0
