"""The README's program and the tutorials, followed word for word."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pages
from rotalabs_steer import SteeringVectorSet
from rotalabs_steer.cli.app import app

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"


def run_line(line):
    """What a line of the command line prints; the verb is run in this process."""
    program, *arguments = shlex.split(line)
    assert program == "rotalabs-steer"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == (1 if "check" in arguments else 0), result.output  # what it found is the point there
    return result.stdout


@pytest.mark.real_model
@pytest.mark.parametrize("page", ["first-vector", "own-data", "layer-and-strength", "agents"])
def test_tutorials(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.follow(TUTORIALS / f"{page}.md", run_line)


@pytest.mark.real_model
def test_the_tutorial_on_llama_cpp(tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp", reason="make test-llama-cpp installs llama-cpp-python")
    monkeypatch.chdir(tmp_path)
    pages.follow(TUTORIALS / "llama-cpp.md", run_line)
    assert Path("formality.gguf").exists()


@pytest.mark.real_model
def test_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.follow(ROOT / "README.md", run_line)
    assert SteeringVectorSet.load("vectors/formality").layers == list(range(30))


def test_every_tutorial_is_followed_by_a_test():
    """vLLM's by tests/engines/vllm/live/test_server.py."""
    followed = {"first-vector", "own-data", "layer-and-strength", "agents", "llama-cpp", "vllm"}
    assert {path.stem for path in (TUTORIALS).iterdir()} == followed


def test_other_words_than_a_page_says_are_noticed():
    assert pages.alike("formality  17 +0.66", "formality 17 +0.66\n")
    table = "layer 14: 1.35 times the raw vector, answers +0.15\nlayer 17: 1.39 times the raw vector, answers +0.16"
    assert pages.alike(table, table.replace("1.39", "1.40"))
    assert not pages.alike(table, table.replace("14", "15").replace("1.3", "2.4").replace("+", "-"))
    assert not pages.alike("To request a day off, you can simply ask", "Hey boss, I'm so glad you're here today")
