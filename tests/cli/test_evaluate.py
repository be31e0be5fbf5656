"""The verbs `evaluate` and `report` on a small model in a local folder."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from made_up_tuning import tuned_steering
from rotalabs_steer import ActivationInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.cli.app import app
from rotalabs_steer.cli.loading import load_model
from rotalabs_steer.datasets import load_formality_pairs, save_jsonl
from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.model.decoder import model_fingerprint
from rotalabs_steer.tuning.result import TunedSteering

pytestmark = pytest.mark.real_model


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def tuned_folder(small_model, tmp_path_factory):
    """A tuning of made-up numbers whose vectors fit the small model."""
    folder = tmp_path_factory.mktemp("tuned") / "formality"
    tuned = tuned_steering(hidden=32)
    fingerprint = model_fingerprint(AutoModelForCausalLM.from_pretrained(small_model))
    generator = torch.Generator().manual_seed(0)
    vectors = [
        SteeringVector("calm", n, torch.randn(32, generator=generator), "small", metadata={"fingerprint": fingerprint})
        for n in tuned.vectors.layers
    ]
    made = SteeringVectorSet("calm", vectors, tuned.vectors.metadata)
    TunedSteering(**{**vars(tuned), "vectors": made}).save(folder)
    return folder


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "formal.jsonl"
    save_jsonl(ContrastPairDataset("formal", load_formality_pairs("test")[:4]), path)
    return path


def test_a_report_is_written_with_and_without_the_model(small_model, tuned_folder, pair_file, tmp_path):
    bare = run("report", tuned_folder, "--output", tmp_path / "bare.html")
    assert bare.exit_code == 0, bare.output
    assert "rotalabs-steer report FOLDER --model MODEL" in (tmp_path / "bare.html").read_text("utf-8")
    full = run(
        "report", tuned_folder, "--output", tmp_path / "full.html", "--model", small_model, "--pairs", pair_file,
        "--json",
    )  # fmt: skip
    assert full.exit_code == 0, full.output
    records = json.loads(full.stdout)
    assert len(records["evidence"]["detection"]["positive_scores"]) == 4
    again = run("report", tuned_folder, "--output", tmp_path / "again.html")
    assert again.exit_code == 0
    assert (tmp_path / "again.html").read_text("utf-8") == (tmp_path / "full.html").read_text("utf-8")


def test_vectors_are_evaluated(small_model, tuned_folder, pair_file):
    result = run("evaluate", small_model, tuned_folder, "--pairs", pair_file, "--strength", 0.5, "--strength", "-2")
    assert result.exit_code == 0, result.output
    assert re.search(r"layer 3, 4 pairs\. As a detector: AUROC 0\.\d\d;", result.output)
    as_json = run("evaluate", small_model, tuned_folder, "--pairs", pair_file, "--layer", 1, "--strength", 1, "--json")
    found = json.loads(as_json.stdout)
    assert found["layer_index"] == 1
    (row,) = found["strengths"]
    assert row["cost"]["kl"] > 0
    assert found["unsteered"]["kl"] == pytest.approx(0, abs=1e-6)
    assert row["effect"]["pairs"] == 4
    assert row["refusal"] is None


def test_a_set_with_several_acting_layers_is_evaluated_as_it_steers(small_model, tuned_folder, pair_file, tmp_path):
    """At both layers together it costs what an injector at both costs, and more than at either alone."""
    tuned = SteeringVectorSet.load(tuned_folder)
    layers = tuned.layers[:2]
    tuned.with_acting_layers(layers).save(tmp_path / "spread")
    options = ["--pairs", pair_file, "--strength", 1, "--json"]
    found = json.loads(run("evaluate", small_model, tmp_path / "spread", *options).stdout)
    assert (found["acting_layers"], found["layer_index"]) == (layers, layers[1])
    loaded = load_model(str(small_model))
    model, tokenizer = loaded.network, loaded.chat
    probe = CoherenceProbe(model, tokenizer)
    with ActivationInjector(model, [tuned[layer] for layer in layers]):
        assert found["strengths"][0]["cost"]["kl"] == pytest.approx(probe.measure().kl, rel=1e-4)
    for layer in layers:
        alone = json.loads(run("evaluate", small_model, tmp_path / "spread", "--layer", layer, *options).stdout)
        assert alone["acting_layers"] == [layer]
        assert alone["strengths"][0]["cost"]["kl"] != pytest.approx(found["strengths"][0]["cost"]["kl"], rel=1e-3)
    strengths = ["--strength", 2, "--strength", -1]
    shown = run("evaluate", small_model, tmp_path / "spread", *options[:-1], *strengths)
    assert f"layers {layers[0]}, {layers[1]}, 4 pairs" in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[1:])) <= 80
    assert "…" not in shown.stdout
    assert "measuring at strength -1" in shown.stderr.splitlines(), "a line for each step"


def test_refusals_are_counted_where_they_are_asked_for(small_model, tuned_folder, pair_file):
    result = run(
        "evaluate", small_model, tuned_folder, "--pairs", pair_file, "--refusal", "--max-new-tokens", 2,
        "--strength", 1, "--json",
    )  # fmt: skip
    (row,) = json.loads(result.stdout)["strengths"]
    assert row["refusal"]["num_samples"] > 20
    assert row["refusal"]["refusal_rate_harmful"] == 0.0


@pytest.mark.parametrize(("arguments", "message"), [
    (["report", "."], "holds no tuning"),
    (["report", "TUNED", "--pairs", "formality"], "give --model too"),
    (["report", "TUNED", "--model", "sample", "--pairs", "clam"], "There is no file clam, and no built-in behaviour"),
    (["evaluate", "sample", "TUNED"], "There is no file calm, and no built-in behaviour"),
    (["evaluate", "sample", "TUNED", "--pairs", "formality", "--layer", 7], "no vector at layer 7; it has [1, 3]"),
    (["evaluate", "./none", "TUNED", "--pairs", "formality"], "There is no folder ./none"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(tuned_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*(tuned_folder if word == "TUNED" else word for word in arguments))
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.real_model
def test_a_file_without_a_test_split_is_not_read_as_one(tuned_folder, tmp_path):
    pairs = [ContrastPair(f"a {n}", f"b {n}", {"split": "train"}, prompt=f"Say {n}.") for n in range(4)]
    save_jsonl(ContrastPairDataset("formal", pairs), tmp_path / "formal.jsonl")
    result = run("evaluate", "sample", tuned_folder, "--pairs", tmp_path / "formal.jsonl")
    assert result.exit_code == 1
    assert "names splits (train), but no pair is in 'test'" in " ".join(result.output.split())


def test_strength_zero_is_refused(small_model, tuned_folder):
    result = run("evaluate", small_model, tuned_folder, "--pairs", "formality", "--strength", 0)
    assert "cannot be compared with 0" in result.output
