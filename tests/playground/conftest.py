"""Vectors of the sample model as a user of the playground has them: a tuned set, and one whose name is HTML."""

from __future__ import annotations

import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.datasets import ContrastPairDataset, load_formality_pairs
from rotalabs_steer.extraction import extract_caa_vector

MARKUP = "<img src=x onerror=\"document.title='run'\">{{7*7}}${7*7}"
QUESTION = "Ask my landlord to fix the heating."


@pytest.fixture(scope="session")
def vectors(smollm, tokenizer, tmp_path_factory):
    """A folder with two sets."""
    folder = tmp_path_factory.mktemp("vectors")
    pairs = ContrastPairDataset("formality", load_formality_pairs("train")[:16])
    formality = extract_caa_vector(smollm, tokenizer, pairs, 17, show_progress=False)
    tuned = {"chosen_layer": 17, "calibration": {"budget_kl": 0.2}, "steers": True}
    SteeringVectorSet("formality", [formality], tuned).save(folder / "formality")
    direction = torch.randn(576, generator=torch.Generator().manual_seed(0))
    SteeringVectorSet(MARKUP, [SteeringVector(MARKUP, 12, direction, "random")]).save(folder / "markup")
    return folder
