"""Raw sets whose strength costs far more than the usual budget are warned of before the first answer."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from rotalabs_steer import ActivationInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.cli.app import app
from rotalabs_steer.cli.loading import LoadedModel
from rotalabs_steer.cli.strength_costs import StrengthCost, measure_costs
from rotalabs_steer.datasets import ContrastPairDataset, load_formality_pairs
from rotalabs_steer.errors import ActivationError
from rotalabs_steer.extraction import extract_caa_vector
from rotalabs_steer.measures.coherence import CoherenceProbe

pytestmark = pytest.mark.real_model
SHORT = ["-n", 3]


def run(*arguments, **options):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def vector(smollm, tokenizer):
    pairs = ContrastPairDataset("formality", load_formality_pairs("train")[:16])
    return extract_caa_vector(smollm, tokenizer, pairs, 17, show_progress=False)


@pytest.fixture(scope="module")
def raw(vector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "formality"
    SteeringVectorSet("formality", [vector]).save(folder)
    return folder


def test_the_cost_and_the_suggestion_are_those_of_the_whole_probe(raw, vector, smollm, tokenizer):
    result = run("generate", "sample", "Hi", "-s", f"{raw}=-5", "--json", *SHORT)
    (cost,) = json.loads(result.stdout)["costs"]
    probe = CoherenceProbe(smollm, tokenizer)
    with ActivationInjector(smollm, [vector], -5.0).scoped():
        assert cost["kl"] == pytest.approx(probe.cost(), rel=0.2)
    with ActivationInjector(smollm, [vector], cost["suggested_strength"]).scoped():
        assert cost["usual_budget"] / 1.5 < probe.cost() < cost["usual_budget"] * 1.5
    warning = result.stderr.splitlines()[1]
    number, times, hint = re.fullmatch(
        r"warning: formality=-5 costs ([\d.]+) nats of KL per token, (\d+) × the usual budget of 0\.2: answers may "
        r"fall apart\. Try formality=(-[\d.]+)\.",
        warning,
    ).groups()
    assert float(number) == pytest.approx(cost["kl"], rel=0.05)
    assert int(times) == round(cost["kl"] / 0.2)
    assert float(hint) == cost["suggested_strength"]


def test_who_is_quiet_or_steers_mildly_is_told_nothing(raw):
    assert "warning" not in run("generate", "sample", "Hi", "-s", f"{raw}=1", *SHORT).stderr
    assert run("generate", "sample", "Hi", "-s", f"{raw}=-5", "-q", *SHORT).stderr == ""
    assert run("chat", "sample", "-s", f"{raw}=-5", "-q", *SHORT, input="").stderr == ""
    quiet = run("generate", "sample", "Hi", "-s", f"{raw}=-5", "-q", "--json", *SHORT)
    assert quiet.stderr == ""
    assert json.loads(quiet.stdout)["costs"][0]["kl"] > 0.8


def test_a_chat_warns_first_and_when_a_strength_is_changed(raw):
    result = run("chat", "sample", "-s", f"{raw}=-5", *SHORT, input="/strength formality 1\n/strength formality 9\n")
    warned = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert [line.split()[1] for line in warned] == ["formality=-5", "formality=9"]
    assert result.stderr.index("warning") < result.stderr.index("/help")


def test_calibrated_sets_are_not_measured_unless_they_act_otherwise(vector, smollm, tokenizer):
    model = LoadedModel(smollm, tokenizer, {})
    other = SteeringVector("formality", 16, vector.vector, vector.model_name)
    calibrated = {"formality": SteeringVectorSet("formality", [vector, other], {"calibration": {}, "chosen_layer": 17})}
    both = {"formality": calibrated["formality"].with_acting_layers([16, 17])}
    assert measure_costs(model, calibrated, {"formality": 5.0}, "add") == []
    assert measure_costs(model, both, {"formality": 0.0}, "add") == []
    assert [cost.is_high for cost in measure_costs(model, both, {"formality": 5.0}, "add")] == [True]
    (rotated,) = measure_costs(model, calibrated, {"formality": 0.1}, "rotate")
    assert not rotated.is_high


def test_predictions_that_are_not_finite_are_warned_of(vector, smollm, tokenizer, monkeypatch):
    def overflow(probe):
        raise ActivationError("NaN or infinite")

    monkeypatch.setattr(CoherenceProbe, "cost", overflow)
    sets = {"formality": SteeringVectorSet("formality", [vector])}
    (cost,) = measure_costs(LoadedModel(smollm, tokenizer, {}), sets, {"formality": -2.0}, "add")
    assert (cost.kl, cost.suggested_strength, cost.is_high) == (None, None, True)
    assert str(cost) == "formality=-2 makes the model's predictions NaN or infinite. Try a smaller strength."
    assert str(StrengthCost("calm", 9.0, None, 1.5)).endswith("Try calm=1.5.")


def test_a_model_whose_cost_cannot_be_measured_answers_all_the_same(small_model, vector, tmp_path, monkeypatch):
    monkeypatch.setattr("rotalabs_steer.cli.strength_costs.neutral_passages", lambda: [""])
    SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(32), "m")]).save(tmp_path / "calm")
    result = CliRunner().invoke(app, ["generate", str(small_model), "Hi", "-s", str(tmp_path / "calm"), "-n", "3"])
    assert "What the strengths cost cannot be measured: The cost on neutral text needs passages" in result.stderr
    assert result.exit_code == 0
