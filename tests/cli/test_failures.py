"""Errors that a user can do something about are one sentence; those of the program keep their traceback."""

from __future__ import annotations

import json
import re

import huggingface_hub.constants
import pytest
import torch
from typer.testing import CliRunner

from rotalabs_steer import SteeringVector
from rotalabs_steer.cli.app import app
from rotalabs_steer.cli.failures import explain
from rotalabs_steer.errors import OptionError


@pytest.mark.parametrize(("error", "message"), [
    (OptionError("Unknown scope 'x'."), "Unknown scope 'x'."),
    (FileNotFoundError(2, "No such file or directory", "x"), "No such file or directory: 'x'"),
    (OSError(), "OSError"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "device has too little memory"),
    (MemoryError(), r"too little memory.*\(MemoryError\)"),
    (ImportError("\nUsing `bitsandbytes` needs: pip install bitsandbytes\nMore."), "Using `bitsandbytes` needs"),
])  # fmt: skip
def test_what_a_user_is_told(error, message):
    assert re.search(message, explain(error))


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), ImportError("x", name="rotalabs_steer.cli")])
def test_a_fault_of_the_program_is_not_explained_away(error):
    assert explain(error) is None


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def test_a_model_of_an_unknown_kind_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-type"}), "utf-8")
    result = run("generate", tmp_path, "hi")
    assert result.exit_code == 1
    assert "cannot be loaded as a language model: " in result.output
    assert "no-such-type" in result.output
    assert "Traceback" not in result.output


def test_a_hub_that_does_not_answer_is_one_sentence(tmp_path, hub, monkeypatch):
    SteeringVector("calm", 1, torch.ones(4), "m").save(tmp_path / "calm")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    result = run("vectors", "push", tmp_path / "calm", "me/calm")
    assert result.exit_code == 1
    assert result.output.startswith("error: The network failed: ")
    assert "Traceback" not in result.output
