"""The verbs `export` and `bake`."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rotalabs_steer import ActivationInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.cli.app import app
from rotalabs_steer.files.gguf import read_control_vector
from tiny import tiny_llama


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def stored(tmp_path):
    """A set with a chosen layer, and one vector of it."""
    vectors = [SteeringVector("calm", n, torch.randn(16), "tiny") for n in (0, 1, 2)]
    SteeringVectorSet("calm", vectors, {"chosen_layer": 2}).save(tmp_path / "calm")
    vectors[1].save(tmp_path / "one")
    return tmp_path


def test_export_takes_the_chosen_layer(stored):
    result = run("export", stored / "calm", stored / "out.gguf", "--strength", 1.5)
    assert result.exit_code == 0, result.output
    assert f"run llama.cpp with --control-vector {stored / 'out.gguf'}" in result.output
    vector = SteeringVectorSet.load(stored / "calm")[2].vector
    read = read_control_vector(stored / "out.gguf")
    assert list(read.directions) == [2]
    assert torch.equal(read.directions[2], 1.5 * vector)


def test_export_from_one_file(stored):
    SteeringVectorSet.load(stored / "calm").save(stored / "calm.safetensors")
    result = run("export", stored / "calm.safetensors", stored / "out.gguf", "--layer", 1)
    assert result.exit_code == 0, result.output
    assert list(read_control_vector(stored / "out.gguf").directions) == [1]


def test_export_of_one_vector_without_its_strength(stored):
    result = run("export", stored / "one", stored / "out.gguf", "--strength", 1.5, "--no-fold")
    assert f"--control-vector-scaled {stored / 'out.gguf'}:1.5" in result.output
    read = read_control_vector(stored / "out.gguf")
    assert torch.equal(read.directions[1], SteeringVector.load(stored / "one").vector)


def test_export_takes_all_acting_layers_unless_others_are_named(stored):
    vectors = [SteeringVector("calm", n, torch.randn(16), "tiny") for n in (0, 1, 2, 3)]
    SteeringVectorSet("calm", vectors, acting_layers=[1, 3]).save(stored / "spread")
    for options, layers in (([], [1, 3]), (["--layer", 2], [2]), (["--layer", 3, "--layer", 2], [2, 3])):
        result = run("export", stored / "spread", stored / "out.gguf", *options)
        assert result.exit_code == 0, result.output
        assert list(read_control_vector(stored / "out.gguf").directions) == layers
        assert ", ".join(map(str, layers)) in result.stderr


def test_all_layers_are_exported_but_the_one_that_llama_cpp_cannot_steer(stored):
    result = run("export", stored / "calm", stored / "out.gguf", "--all-layers", "--json")
    assert result.exit_code == 0, result.output
    assert "Layer 0 is left out: llama.cpp cannot steer it." in result.stderr
    assert list(read_control_vector(stored / "out.gguf").directions) == [1, 2]
    assert json.loads(result.stdout)["layers"] == [1, 2]


def test_layers_and_strength_can_be_named_with_the_vectors(stored):
    assert run("export", f"{stored / 'calm'}:1-2=1.5", stored / "out.gguf").exit_code == 0
    written = read_control_vector(stored / "out.gguf").directions
    assert list(written) == [1, 2]
    assert torch.equal(written[1], 1.5 * SteeringVectorSet.load(stored / "calm")[1].vector)


def test_export_and_convert_write_the_same_layers(stored):
    for verb in (["export"], ["vectors", "convert"]):
        assert run(*verb, stored / "calm", stored / "out.gguf").exit_code == 0
        assert list(read_control_vector(stored / "out.gguf").directions) == [2]


def test_export_says_that_a_set_does_not_steer(stored):
    whole = SteeringVectorSet.load(stored / "calm")
    SteeringVectorSet("calm", list(whole), whole.metadata | {"steers": False}).save(stored / "calm")
    result = run("export", stored / "calm", stored / "out.gguf")
    assert result.exit_code == 0
    assert "Tuning found that the vectors of 'calm' do not steer tiny" in result.stderr
    assert "do not steer" not in run("export", stored / "one", stored / "one.gguf").stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["calm:0", "out.gguf"], "cannot steer layer 0"),
    (["calm:1=2", "out.gguf", "--strength", 1], "VECTORS names the strength 2 and --strength the strength 1"),
    (["calm:1", "out.gguf", "--layers", "1-2"], "VECTORS names layers and --layers does, too"),
    (["calm:1", "out.gguf", "--all-layers"], "contradict each other"),
    (["calm=inf", "out.gguf"], "is not of the form VECTORS=STRENGTH"),
    (["calm", "out.gguf", "--layer", 7], "has no vector at layer 7; it has [0, 1, 2]"),
    (["calm", "out.gguf", "--layer", 1, "--all-layers"], "contradict each other"),
    (["one", "out.gguf", "--layer", 2], "has no vector at layer 2; it has [1]"),
    (["nothing", "out.gguf"], "nothing.json"),
])  # fmt: skip
def test_what_cannot_be_exported(stored, monkeypatch, arguments, message):
    monkeypatch.chdir(stored)
    result = run("export", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (stored / "out.gguf").exists()


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore")  # of transformers about the tiny configuration
def test_bake_writes_a_checkpoint_that_is_steered(stored, tokenizer, monkeypatch):
    monkeypatch.chdir(stored)
    model = tiny_llama()
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    result = run("bake", "model", "calm", "out", "--strength", 0.5, "--all-layers")
    assert result.exit_code == 0, result.output
    assert "LlamaForCausalLM with calm (layers 0-2) at strength 0.5 written to out" in result.output
    baked = AutoModelForCausalLM.from_pretrained("out").eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad(), ActivationInjector(model, list(SteeringVectorSet.load("calm")), 0.5):
        torch.testing.assert_close(baked(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert (stored / "out" / "tokenizer_config.json").exists()

    SteeringVectorSet.load("calm").with_acting_layers([1, 2]).save("spread")
    result = run("bake", "model", "spread", "together")
    assert "LlamaForCausalLM with calm (layers 1, 2) at strength 1 written to together" in result.output
    baked = AutoModelForCausalLM.from_pretrained("together").eval()
    with torch.no_grad(), ActivationInjector(model, SteeringVectorSet.load("spread")):
        torch.testing.assert_close(baked(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)

    again = run("bake", "model", "calm", "out")
    assert again.exit_code == 1
    assert "out exists and is not an empty folder" in again.output
    ablated = run("bake", "model", "calm", "ablated", "--layer", 1, "--intervention", "ablate")
    assert ablated.exit_code == 0, ablated.output
