"""Every code block of the core concepts page, run word for word on the real model."""

import re
from pathlib import Path

import pytest
import torch

import rotalabs_steer
from rotalabs_steer import SteeringVector, SteeringVectorSet

PAGE = Path(__file__).parent.parent / "docs" / "core-concepts.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
def test_the_blocks_run_one_after_the_other(smollm, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    refusal, uncertainty = (
        SteeringVectorSet(name, [SteeringVector(name, layer, torch.randn(576), "SmolLM2") for layer in (14, 15)])
        for name in ("refusal", "uncertainty")
    )
    given = {
        "model": smollm,
        "inputs": tokenizer("How do I pick a lock?", return_tensors="pt"),
        "steering_vector": refusal[15],
        "refusal_vectors": refusal,
        "uncertainty_vectors": uncertainty,
        "vector": refusal[15],
        "vector_set": refusal,
        "SteeringVector": SteeringVector,
        "SteeringVectorSet": SteeringVectorSet,
    }
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), given)

    assert given["pair"].positive.startswith("I cannot")
    assert {layer: tuple(tensor.shape) for layer, tensor in given["activations"].items()} == {
        14: (1, 1, 576), 15: (1, 1, 576), 16: (1, 1, 576),
    }  # fmt: skip
    assert given["outputs"].shape[1] > given["inputs"]["input_ids"].shape[1]
    assert given["injector"].strengths == {"refusal": 0.8, "uncertainty": 0.5}
    assert given["vector"] == refusal[15]
    assert given["vector_set"] == refusal
    assert sorted(path.name for path in Path("vectors").iterdir()) == [
        "refusal", "refusal_layer_15.json", "refusal_layer_15.pt",
    ]  # fmt: skip


def test_the_page_names_every_public_class():
    text = PAGE.read_text("utf-8")
    for name in ("ActivationHook", "ActivationInjector", "MultiVectorInjector", "SteeringVector", "MODEL_CONFIGS"):
        assert name in text
        assert name in rotalabs_steer.__all__
