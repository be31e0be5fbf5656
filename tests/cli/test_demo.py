"""The demo on a small model in a local folder: every step runs, in a fraction of the time."""

import re

import pytest
from typer.testing import CliRunner

from rotalabs_steer import SteeringVectorSet, __version__
from rotalabs_steer.cli.app import app

pytestmark = pytest.mark.real_model


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_demo_goes_the_whole_way(small_model, tmp_path):
    result = run("demo", "--model", small_model, "--behavior", "formality", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "the loaded set gives the same tokens" in " ".join(result.output.split())
    vectors = SteeringVectorSet.load(tmp_path / "out" / "formality")
    assert vectors.chosen_layer in vectors.layers
    assert vectors.metadata["effect"]["low"] <= vectors.metadata["effect"]["high"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count("<svg") == 4
    assert f"layer {vectors.chosen_layer} was chosen." in page
    assert "Which tokens carry it" in page
    assert not re.search(r'(src|href)="http', page), "the report needs the network"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--behavior", "clam"], "Unknown behaviour 'clam'. Built in are:"),
    (["--model", "./no-such-model"], "There is no folder ./no-such-model. Give a model folder"),
])  # fmt: skip
def test_a_mistake_is_one_sentence_and_touches_nothing(tmp_path, arguments, message):
    result = run("demo", *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_version():
    assert run("--version").output.strip() == __version__
