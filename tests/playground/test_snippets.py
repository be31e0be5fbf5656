import json
import shlex

import pytest
import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import OptionError
from rotalabs_steer.playground.comparisons import Request
from rotalabs_steer.playground.snippets import client_snippet, curl_snippet, json_snippet, python_snippet
from rotalabs_steer.vector_sources import load_vectors

AWKWARD = 'It\'s "quoted", $HOME, `date`, \\n\nnew line, {braces} and ünïcode'
SERVER = "http://127.0.0.1:8000/v1"


def request(**changes):
    settings = {"prompt": AWKWARD, "strengths": {"calm": -0.5, "dry wit": 0.0, "o'clock": 1.5}, "scope": "generated"}
    return Request(**(settings | changes))


def test_the_body_is_what_the_server_reads():
    body = json.loads(json_snippet(request(temperature=0.7, seed=3), "a/model"))
    assert body == {
        "model": "a/model", "messages": [{"role": "user", "content": AWKWARD}], "max_tokens": 128, "temperature": 0.7,
        "seed": 3, "steering": {"behaviors": {"calm": -0.5, "o'clock": 1.5}, "scope": "generated"},
    }  # fmt: skip
    assert "steering" not in json.loads(json_snippet(request(strengths={"calm": 0.0}), "a/model"))


def test_what_a_server_cannot_do_is_nothing_that_it_would_leave_out():
    asked = request(intervention="ablate")
    assert json.loads(json_snippet(asked, "a/model"))["steering"]["intervention"] == "ablate"
    assert curl_snippet(asked, "a/model", SERVER) == (
        "# A vLLM server steers by adding; ablate runs in transformers only.\n"
    )


def test_the_shell_passes_curl_the_body_as_it_is():
    command = curl_snippet(request(), "a/model", SERVER, key=True, remark="Two\nlines")
    assert command.startswith("# Two\n# lines\ncurl ")
    words = shlex.split(command, comments=True)
    assert words[:2] == ["curl", f"{SERVER}/chat/completions"]
    assert words[words.index("-d") + 1] == json_snippet(request(), "a/model")
    assert "Authorization: Bearer $VLLM_API_KEY" in words
    assert "Authorization" not in curl_snippet(request(), "a/model", SERVER)


def test_python_holds_every_text_as_it_is(tmp_path):
    program = python_snippet(request(temperature=0.7), "C:\\models\\x", {"calm": tmp_path, "o'clock": tmp_path / "b'c"})
    compile(program, "snippet", "exec")
    for text in (AWKWARD, "C:\\models\\x", str(tmp_path / "b'c")):
        assert repr(text) in program or f'"{text}"' in program or repr(text)[1:-1] in program
    assert "do_sample=True, temperature=0.7" in program
    assert "dry wit" not in program
    compile(client_snippet(request(), "a/model", SERVER, key=True), "snippet", "exec")


def test_python_reads_a_folder_that_was_made_to_be_shared(tmp_path):
    SteeringVectorSet("calm", [SteeringVector("calm", 1, torch.ones(4), "a/model")]).save_pretrained(tmp_path)
    program = python_snippet(request(strengths={"calm": 1.0}), "a/model", {"calm": tmp_path})
    found = {}
    exec(program.partition("vectors = ")[1] + program.partition("vectors = ")[2].partition("chat = ")[0], found)
    assert [(load_vectors(place).layers, strength) for place, strength in found["vectors"].items()] == [([1], 1.0)]


def test_without_steering_python_does_not_steer():
    assert "rotalabs_steer" not in python_snippet(request(strengths={}), "a/model", {})


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompt": " \n"}, "The prompt is empty"),
    ({"scope": "some"}, "Unknown scope 'some'"),
    ({"max_new_tokens": 0}, "got 0, 0.0 and 0"),
    ({"temperature": -1.0}, "got 128, -1.0 and 0"),
    ({"seed": -1}, "got 128, 0.0 and -1"),
])  # fmt: skip
def test_a_request_that_cannot_be_met_is_an_error(changes, message):
    with pytest.raises(OptionError, match=message):
        request(**changes)
