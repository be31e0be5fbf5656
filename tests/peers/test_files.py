"""Vectors that steering-vectors, repeng and rotalabs-steer 1.2 trained and wrote steer here as they steer there.

EasySteer is not on PyPI: the files in a checkout of its repository are read where EASYSTEER_CHECKOUT names one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import repeng
import steering_vectors
import torch
from gguf import GGUFReader

from rotalabs_steer import ActivationInjector, SteeringVectorSet
from rotalabs_steer.importing import import_vectors
from rotalabs_steer.sample_model import sample_model_path

pytestmark = pytest.mark.real_model

LAYERS = [8, 15, 22]
PAIRS = [
    ("Good afternoon, sir. I would be most grateful for your reply.", "hey, text me back ok?"),
    ("I regret to inform you that the meeting has been postponed.", "meeting's off lol, later!"),
    ("Kindly submit the documents at your earliest convenience.", "just send the stuff whenever"),
    ("We sincerely apologise for any inconvenience caused.", "oops, our bad, sorry!"),
]
PROMPT = "The weather in Oslo today"


@pytest.fixture
def logits(smollm, tokenizer):
    """The logits of a prompt at all its tokens, of the model as it is at the moment of the call."""

    @torch.no_grad()
    def compute(call=smollm):
        return call(**tokenizer(PROMPT, return_tensors="pt"), use_cache=False).logits

    return compute


@pytest.fixture
def steered_like(smollm, logits):
    """Asserts that our injector, with what was imported, gives what the peer's steering gave."""

    def check(vectors, strength, theirs):
        unsteered = logits()
        with ActivationInjector(smollm, vectors, strength, check_model=False):
            ours = logits()
        assert (theirs - unsteered).abs().max() > 1.0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))

    return check


def test_steering_vectors(smollm, tokenizer, logits, steered_like, tmp_path):
    samples = [steering_vectors.SteeringVectorTrainingSample(*pair) for pair in PAIRS]
    trained = steering_vectors.train_steering_vector(smollm, tokenizer, samples, layers=LAYERS)
    torch.save(trained, tmp_path / "formality.pt")
    with trained.apply(smollm, multiplier=0.5), torch.no_grad():
        theirs = logits()
    vectors = import_vectors(tmp_path / "formality.pt")
    assert (vectors.behavior, vectors.layers) == ("formality", LAYERS)
    steered_like(vectors, 0.5, theirs)
    assert all(
        torch.equal(one.vector, other.vector) for one, other in zip(import_vectors(trained), vectors, strict=True)
    )


def test_repeng(smollm, tokenizer, logits, steered_like, tmp_path):
    pairs = [repeng.DatasetEntry(*pair) for pair in PAIRS]
    trained = repeng.ControlVector.train(smollm, tokenizer, pairs, batch_size=4)
    trained.export_gguf(tmp_path / "formality.gguf")
    controlled = repeng.ControlModel(smollm, LAYERS)
    try:
        controlled.set_control(trained, 8.0)
        theirs = logits(controlled)
    finally:
        controlled.unwrap()
    vectors = import_vectors(tmp_path / "formality.gguf")
    assert (vectors.behavior, vectors.model_name, vectors.layers) == ("formality", "llama", list(range(1, 30)))
    steered_like([vectors[layer] for layer in LAYERS], 8.0, theirs)
    assert all(
        torch.equal(one.vector, other.vector) for one, other in zip(import_vectors(trained), vectors, strict=True)
    )


def test_rotalabs_steer_1_2(logits, steered_like, tmp_path):
    """It has this package's name, so it runs in a process of its own."""
    old = Path(sys.prefix) / "rotalabs-steer-1.2"
    if not old.is_dir():
        pytest.skip("make test-peers installs rotalabs-steer 1.2 beside the virtual environment's packages")
    program = Path(__file__).with_name("write_with_1_2.py")
    environment = os.environ | {"PYTHONPATH": str(old)}
    arguments = [str(sample_model_path()), str(tmp_path), PROMPT]
    subprocess.run([sys.executable, "-W", "ignore", program, *arguments], env=environment, check=True, timeout=300)
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    vectors = SteeringVectorSet.load(tmp_path / "formality")
    assert (vectors.behavior, vectors.layers) == ("unknown", LAYERS)
    steered_like([vectors[15]], 0.5, theirs)
    assert import_vectors(tmp_path / "formality") == vectors


@pytest.mark.skipif("EASYSTEER_CHECKOUT" not in os.environ, reason="no checkout of EasySteer in EASYSTEER_CHECKOUT")
def test_easysteer():
    checkout = Path(os.environ["EASYSTEER_CHECKOUT"])
    vectors = [path for path in checkout.rglob("*.gguf") if path.stat().st_size > 1_000]  # some are pointers of Git LFS
    assert len(vectors) > 20
    for path in vectors:
        theirs = {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(path).tensors}
        ours = import_vectors(path)
        assert theirs.keys() == {f"direction.{layer}" for layer in ours.layers}
        assert all(theirs[f"direction.{vector.layer_index}"].equal(vector.vector) for vector in ours)
    arrays = [checkout / "vectors" / name for name in ("2534.pt", "15973.pt")]
    for path in arrays:
        theirs = torch.as_tensor(torch.load(path, weights_only=False))
        assert import_vectors(path, layers=[8])[8].vector.equal(theirs)
