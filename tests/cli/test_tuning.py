"""The verb `tune` on a small model in a local folder."""

import json

import pytest
from typer.testing import CliRunner

from rotalabs_steer.cli.app import app
from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset, save_jsonl
from rotalabs_steer.evaluation import TunedSteering

pytestmark = pytest.mark.real_model
LITTLE = ["--candidates", "1", "--prompts", "2", "--max-new-tokens", "4", "--budget", "0.002"]


def tune(*arguments):
    return CliRunner().invoke(app, ["tune", *map(str, arguments), *LITTLE, "--json"], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def behaviors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    options = []
    for name, (high, low) in {"shouting": ("AB", "ab"), "counting": ("12", "xy")}.items():
        pairs = [ContrastPair(high * (n % 3 + 1), low * (n % 3 + 1), prompt=f"Say {n}.") for n in range(10)]
        save_jsonl(ContrastPairDataset(name, pairs), folder / f"{name}.jsonl")
        options += ["--behavior", folder / f"{name}.jsonl"]
    return options


def test_behaviours_tuned_side_by_side_come_out_as_one_after_the_other(small_model, behaviors, tmp_path):
    one, two = (tune(small_model, *behaviors, "--output", tmp_path / n, "--processes", n) for n in ("1", "2"))
    assert (one.exit_code, two.exit_code) == (0, 0), one.stderr + two.stderr
    assert [row["behavior"] for row in json.loads(two.stdout)] == ["shouting", "counting"], "in the order asked for"
    for name in ("shouting", "counting"):
        alone, beside = (TunedSteering.load(tmp_path / n / name) for n in ("1", "2"))
        assert beside.layer_index == alone.layer_index
        assert beside.curve.effect.mean == pytest.approx(alone.curve.effect.mean, abs=1e-5)
        assert name in two.stderr


def test_an_error_in_one_process_is_the_verbs(small_model, behaviors, tmp_path):
    (tmp_path / "shouting").mkdir()
    (tmp_path / "shouting" / "tuning.json").write_text("{}")
    result = tune(small_model, *behaviors, "--output", tmp_path, "--processes", 2)
    assert result.exit_code == 1
    assert "tuning.json" in json.loads(result.stdout)["error"]["message"]
    assert "Traceback" not in result.stderr
