"""The judge that goes by meaning, with the real all-mpnet-base-v2."""

import pytest

from rotalabs_steer.datasets import ContrastPair, load_formality_pairs
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.judging.embedding_judge import EmbeddingJudge, can_embed
from rotalabs_steer.judging.scoring import judge_accuracy

needs_model = pytest.mark.skipif(not can_embed(), reason="all-mpnet-base-v2 is not installed")


@pytest.fixture(scope="module")
def judge():
    return EmbeddingJudge.fit(list(load_formality_pairs("train")))


@needs_model
@pytest.mark.real_model
def test_it_tells_the_sides_of_other_pairs_apart(judge):
    assert judge_accuracy(judge, list(load_formality_pairs("test"))) > 0.9


@needs_model
@pytest.mark.real_model
def test_it_goes_by_meaning_and_not_by_one_word(judge):
    formal, casual, loop = judge([
        "I regret to inform you that the committee has declined your application.",
        "Sorry mate, they turned you down, but hey, there's always next time!",
        "yeah yeah yeah yeah yeah yeah yeah yeah yeah yeah",
    ])  # fmt: skip
    assert formal > casual
    assert abs(loop) < 10


@needs_model
def test_pairs_that_do_not_differ_teach_nothing():
    with pytest.raises(DatasetError, match="do not differ, so no judge can learn"):
        EmbeddingJudge.fit([ContrastPair("same", "same", prompt="a", negative_prompt="b")])
