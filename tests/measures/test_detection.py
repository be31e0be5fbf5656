import numpy as np
import pytest
import torch
from scipy import stats

from rotalabs_steer import ActivationInjector, SteeringVector, extract_activations
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets import ContrastPair, load_formality_pairs
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import ActivationError, DatasetError, OptionError, VectorError
from rotalabs_steer.evaluation import auroc, detection_auroc, project
from rotalabs_steer.extraction import extract_vectors
from tiny import count_hooks, make_vector


def reference_scores(model, ids, vector):
    hidden = extract_activations(model, {"input_ids": torch.tensor([ids])}, [vector.layer_index], token_position="all")
    return hidden[vector.layer_index][0] @ (vector.vector / vector.vector.norm())


def test_scores_are_projections_on_the_unit_vector(tiny_model, words):
    vectors = [make_vector(tiny_model, layer, seed=seed) for layer, seed in ((2, 0), (0, 1), (2, 2))]
    texts = ["w20 w21 w22 w23", "w20 w21 w40"]
    for text, found in zip(texts, project(tiny_model, words, texts, vectors), strict=True):
        ids = words(text)["input_ids"]
        for vector, scores, score in zip(vectors, found.scores, found.text_scores, strict=True):
            expected = reference_scores(tiny_model, ids, vector)
            assert torch.allclose(scores, expected, atol=1e-5)
            assert score == pytest.approx(float(expected[1:].mean()), abs=1e-5)
    assert count_hooks(tiny_model) == 0


def test_tokens_are_where_the_text_has_them(llama, words):
    (found,) = project(llama, words, ["w20  w21"], make_vector(llama))
    assert found.tokens == ("<s>", "w20", "w21")
    assert found.offsets == ((0, 0), (0, 3), (5, 8))
    assert found.scores.shape == (1, 3)
    assert found.start == 1


def test_answers_are_scored_behind_their_prompts(llama, words):
    vector = make_vector(llama, 2)
    (found,) = project(llama, words, ["w20 w21"], vector, prompts=["w30 w31"])
    assert found.start == 0
    ids = [*ChatTokenizer.of(words).prompt("w30 w31"), *words("w20 w21", add_special_tokens=False)["input_ids"]]
    assert found.tokens == ("w20", "w21")
    expected = reference_scores(llama, ids, vector)[-2:]
    assert torch.allclose(found.scores[0], expected, atol=1e-5)
    assert float(found.text_scores) == pytest.approx(float(expected.mean()), abs=1e-5)


def test_steering_moves_the_projection_by_its_length(llama, words):
    vector = make_vector(llama, 2)
    (before,) = project(llama, words, ["w20 w21 w22"], vector)
    with ActivationInjector(llama, vector, strength=-0.5):
        (after,) = project(llama, words, ["w20 w21 w22"], vector)
    assert torch.allclose(after.scores - before.scores, torch.tensor(-0.5 * vector.norm), atol=1e-4)


def test_no_texts_have_no_projections(llama, words):
    assert project(llama, words, [], make_vector(llama), prompts=[]) == []


def test_what_cannot_be_projected_is_an_error(llama, words):
    vector = make_vector(llama)
    with pytest.raises(OptionError, match="texts is one string"):
        project(llama, words, "w20 w21", vector)
    with pytest.raises(OptionError, match="1 prompts for 2 texts"):
        project(llama, words, ["w20", "w21"], vector, prompts=["w22"])
    with pytest.raises(DatasetError, match=r"Text 1 has 1 token\(s\), none of which counts"):
        project(llama, words, ["w20 w21", ""], vector)
    with pytest.raises(DatasetError, match="Text 0 has 301 tokens; the model's context holds 256"):
        project(llama, words, ["w20 " * 300], vector)
    with pytest.raises(
        DatasetError, match=r"positive text of pair 0 has \d+ tokens; the model's context holds 256\. Cut"
    ):
        detection_auroc(llama, words, [ContrastPair("w20 " * 300, "w21")], vector)
    with pytest.raises(VectorError, match="nothing to project on"):
        project(llama, words, ["w20 w21"], [])
    slow = type("Slow", (), {"is_fast": False, "__call__": lambda self, text: {}})()
    with pytest.raises(OptionError, match="use_fast=True"):
        project(llama, slow, ["w20 w21"], vector)


def test_activations_that_are_not_finite_are_named(llama, words):
    with torch.no_grad():
        llama.model.embed_tokens.weight[25] = float("nan")
    with pytest.raises(ActivationError, match="activations of text 0 at layer 1 are NaN or infinite"):
        project(llama, words, ["w24 w25"], make_vector(llama))


def test_the_auroc_is_that_of_mann_and_whitney():
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(0.7, 1, 40).round(1), generator.normal(0, 1, 30).round(1)
    found = auroc(positive.tolist(), negative.tolist())
    expected = stats.mannwhitneyu(positive, negative).statistic / (40 * 30)
    assert found.mean == pytest.approx(expected)
    assert found.low < expected < found.high
    assert auroc([1.0, 2.0], [1.0, 2.0]).mean == 0.5
    with pytest.raises(OptionError, match="as many of each; got 2 and 1"):
        auroc([1.0, 2.0], [1.0], paired=True)


@pytest.mark.parametrize("alike", [0.0, 0.5])
@pytest.mark.parametrize("distance", [0.0, 1.0, 1.8])
@pytest.mark.parametrize("count", [8, 12, 24])
def test_the_auroc_interval_covers_as_often_as_it_says(count, distance, alike):
    generator = np.random.default_rng(1)
    truth = stats.norm.cdf(distance / np.sqrt(2))
    covered = 0
    for _ in range(500):
        shared = generator.normal(0, 1, count) * alike**0.5
        positive, negative = (shared + generator.normal(mean, (1 - alike) ** 0.5, count) for mean in (distance, 0))
        found = auroc(positive.tolist(), negative.tolist(), paired=True)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 500 <= 0.99


def test_sides_that_do_not_overlap_leave_the_auroc_uncertain():
    found = auroc(list(range(20, 30)), list(range(10)), paired=True)
    assert (found.mean, found.high) == (1.0, 1.0)
    assert 0.65 < found.low < 0.85
    mirrored = auroc(list(range(10)), list(range(20, 30)), paired=True)
    assert (mirrored.low, mirrored.high) == (0.0, pytest.approx(1 - found.low))
    few = auroc([2.0, 3.0], [0.0, 1.0])
    assert (few.mean, few.low, few.high) == (1.0, None, None)


def test_scores_that_are_not_finite_have_no_auroc():
    with pytest.raises(OptionError, match="some are NaN or infinite"):
        auroc([float("nan")] * 9, [0.0] * 9)


def test_sides_that_differ_in_their_prompt_are_read_where_the_model_answers(llama, words):
    pairs = [ContrastPair("", "", prompt=f"w{n} w20", negative_prompt=f"w{n} w21") for n in (30, 31, 32)]
    vector = make_vector(llama, 1)
    (found,) = detection_auroc(llama, words, pairs, vector)
    expected = [
        float(reference_scores(llama, ChatTokenizer.of(words).prompt(pair.prompt), vector)[-1]) for pair in pairs
    ]
    assert found.positive_scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.real_model
def test_a_vector_detects_its_behaviour_and_a_random_one_does_not(smollm, tokenizer):
    vectors = extract_vectors(smollm, tokenizer, load_formality_pairs("train")[:16], [12, 16], show_progress=False)
    test = load_formality_pairs("test")[:16]
    torch.manual_seed(0)
    noise = SteeringVector("noise", 12, torch.randn(576), vectors.model_name)
    found = detection_auroc(smollm, tokenizer, test, [*vectors, noise])
    assert [detection.layer_index for detection in found] == [12, 16, 12]
    assert all(detection.auroc.low > 0.8 for detection in found[:2])
    assert found[0].paired.mean >= 15 / 16
    assert found[2].auroc.mean < 0.75
    side = render_pair(tokenizer, test[0]).positive
    expected = reference_scores(smollm, list(side.ids), vectors[12])[side.response_start :].mean()
    assert found[0].positive_scores[0] == pytest.approx(float(expected), rel=1e-4)
