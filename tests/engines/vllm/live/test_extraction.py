"""Vectors read by vLLM against those read by transformers."""

import pytest

from engines.vllm.live.conftest import generate, greedy
from rotalabs_steer import extraction
from rotalabs_steer.datasets import load_formality_pairs
from rotalabs_steer.engines.vllm import extract_vectors, extraction_engine
from rotalabs_steer.errors import LayerError, OptionError
from rotalabs_steer.sample_model import sample_model_path


@pytest.fixture(scope="module")
def pairs():
    return list(load_formality_pairs())[:12]


@pytest.fixture
def reading(engines):
    """A token budget below a pair's, so that prompts come in chunks."""
    options = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "max_num_batched_tokens": 64}
    return engines.get(make=extraction_engine, model=str(sample_model_path()), **options)


@pytest.mark.parametrize(
    ("method", "position"), [("mean_difference", None), ("mean_difference", "last"), ("logistic", "mean")]
)
def test_vectors_are_those_of_transformers(reading, smollm, tokenizer, pairs, method, position):
    options = {"method": method, "token_position": position, "show_progress": False}
    found = extract_vectors(reading, pairs, **options)
    expected = extraction.extract_vectors(smollm, tokenizer, pairs, **options)
    assert found.layers == expected.layers == list(range(30))
    worst = max(float((found[n].vector - expected[n].vector).norm()) / expected[n].norm for n in found.layers)
    print(f"{method}, {position}: within {worst:.1e}")
    assert worst < 1e-3
    assert found[14].metadata["fingerprint"] == expected[14].metadata["fingerprint"]
    assert found[14].metadata["token_position"] == expected[14].metadata["token_position"]


def test_what_cannot_be_extracted(reading, pairs):
    with pytest.raises(OptionError, match="Method 'gradient' needs gradient, which vLLM cannot give"):
        extract_vectors(reading, pairs, method="gradient")
    with pytest.raises(LayerError, match=r"Layers \[30\]: name each once, from 0 to 29"):
        extract_vectors(reading, pairs, [30])


def test_an_engine_to_extract_from_does_not_steer(reading, prompts):
    with pytest.raises(OptionError, match="started without steering vectors"):
        generate(reading, prompts[:1], greedy({"warm": 1.0}))


def test_an_engine_that_steers_keeps_no_activations(llm, pairs):
    with pytest.raises(OptionError, match="Make it with extraction_engine"):
        extract_vectors(llm, pairs)
