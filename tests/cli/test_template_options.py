import json
import shutil

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from chat_templates import NO_SYSTEM, OPENS
from rotalabs_steer import SteeringVectorSet
from rotalabs_steer.cli.app import app

pytestmark = pytest.mark.real_model
OFF = ["--template", "enable_thinking=false"]
SHORT = ["--max-new-tokens", 3]


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def copied(small_model, folder, template):
    """The small model with another chat template, or with none."""
    shutil.copytree(small_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    tokenizer.chat_template = template
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reasoner(small_model, tmp_path_factory):
    return copied(small_model, tmp_path_factory.mktemp("reasoner") / "model", OPENS)


@pytest.mark.parametrize(("option", "message"), [
    ("enable_thinkin=false", "never mentions the option 'enable_thinkin', so it would do nothing. Did you mean"),
    ("enable_thinking=False", "is the string 'False', which templates take for true"),
    ("tokenize=true", "tokenize is not an option of a chat template"),
])  # fmt: skip
@pytest.mark.parametrize("verb", ["generate MODEL hi", "chat MODEL", "extract MODEL humor --output x"])
def test_wrong_options_are_said_before_the_model_is_loaded(reasoner, tmp_path, monkeypatch, verb, option, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(reasoner, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    result = run(*verb.replace("MODEL", "./model").split(), "--template", option)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_a_reasoning_model_is_extracted_evaluated_and_tuned(reasoner, tmp_path):
    folder, output = tmp_path / "humor", tmp_path / "tuned"
    result = run("extract", reasoner, "humor", "--output", folder, "--layers", "1")
    assert result.exit_code == 1
    assert "Pass template_options={'enable_thinking': False} (--template enable_thinking=false)" in result.output
    assert run("extract", reasoner, "humor", "--output", folder, "--layers", "1", *OFF).exit_code == 0
    assert SteeringVectorSet.load(folder)[1].metadata["template_options"] == {"enable_thinking": False}
    assert "inside a block of thoughts" in run("evaluate", reasoner, folder, "--json").output
    assert run("evaluate", reasoner, folder, "--json", *OFF).exit_code == 0
    quick = ["--output", output, "--candidates", 1, "--prompts", 2, *SHORT, "--behavior", "humor", "--budget", 0.002]
    assert "inside a block of thoughts" in run("tune", reasoner, *quick).output
    result = run("tune", reasoner, *quick, *OFF)
    assert result.exit_code == 0, result.output
    options = json.loads((output / "humor" / "tuning.json").read_text())["provenance"]["options"]
    assert options["template_options"] == {"enable_thinking": False}


def test_generate_and_chat_think_unless_they_are_told_not_to(reasoner):
    asked = ["generate", reasoner, "hi", "--json", "--max-new-tokens", 8]
    thinking, answering = (json.loads(run(*asked, *more).stdout)["answers"] for more in ([], OFF))
    assert thinking != answering
    result = run("chat", reasoner, *SHORT, *OFF, input="hello\nand now?\n/quit\n")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("verb", [["generate", "MODEL", "hi"], ["chat", "MODEL"]])
def test_a_base_model_without_a_chat_template_is_one_sentence(small_model, tmp_path, verb):
    base = copied(small_model, tmp_path / "base", None)
    result = run(*[word.replace("MODEL", str(base)) for word in verb], input="hello\n/quit\n")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "error: The tokenizer has no chat template, as is usual for base models" in result.output


def test_chat_says_at_once_that_a_system_message_would_be_lost(small_model, tmp_path):
    model = copied(small_model, tmp_path / "model", NO_SYSTEM)
    result = run("chat", model, "--system", "Be brief.", input="hello\n/quit\n")
    assert "loses the system message 'Be brief.'" in result.output
    assert "/strength" not in result.output


def test_a_server_renders_prompts_itself():
    result = run("playground", "--server", "http://127.0.0.1:9/v1", *OFF)
    assert "A server renders the prompts itself: start it with the template options instead" in result.output
