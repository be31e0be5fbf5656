"""A model folder and vectors for it, as a user of a harness has them."""

import pytest

from rotalabs_steer import SteeringVectorSet
from tiny import make_vector, tiny_llama


@pytest.fixture(scope="session")
def small_folder(tokenizer, tmp_path_factory):
    """A tiny random model with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "small"
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vector_folder(tmp_path_factory):
    """Sets of two behaviours in one folder."""
    folder = tmp_path_factory.mktemp("vectors")
    for seed, name in ((0, "formality"), (10, "refusal")):
        vectors = [make_vector(tiny_llama(), layer, 4.0, seed + layer, name) for layer in (1, 2)]
        SteeringVectorSet(name, vectors).save(folder / name)
    return folder
