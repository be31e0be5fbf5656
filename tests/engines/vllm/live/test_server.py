"""`rotalabs-steer serve` as its users meet it: a process, an API key and the openai client."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from engines.vllm.live.conftest import PROMPTS
from engines.vllm.live.documentation import blocks
from engines.vllm.steered_sets import random_set
from rotalabs_steer.errors import ServerError
from rotalabs_steer.playground.comparisons import Request
from rotalabs_steer.playground.transformers_backend import TransformersBackend
from rotalabs_steer.playground.vllm_backend import VllmBackend
from rotalabs_steer.sample_model import sample_model_path

KEY = "a-key"
WARM = {"behaviors": {"warm": 1.0}}
MIXED = (None, WARM, {"behaviors": {"cool": 1.5}, "scope": "generated"}, {"warm": 0.6, "calm": -1.0})


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server(engines, vectors, sets, tmp_path_factory):
    """The address of a running server, and its log."""
    engines.stop()
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [
        Path(sys.executable).with_name("rotalabs-steer"), "serve", sample_model_path(), "--vectors", vectors, "--port",
        port, "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "64", "--max-num-batched-tokens", "512",
        "--served-model-name", "smol",
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(part) for part in command], env=os.environ | {"VLLM_API_KEY": KEY}, stdout=output, stderr=output
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0, timeout=300) as found:
        yield found


def body(steering):
    return {} if steering is None else {"steering": steering}


def chat(client, steering=None, prompt=PROMPTS[0], tokens=16, **options):
    return client.chat.completions.create(
        model="smol", messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=tokens,
        extra_body=body(steering) | {"ignore_eos": True}, **options,
    )  # fmt: skip


def text(answer):
    return answer.choices[0].message.content


def streamed(client, steering):
    return "".join(
        chunk.choices[0].delta.content or "" for chunk in chat(client, steering, stream=True) if chunk.choices
    )


def get(server, path, key=KEY, method="GET", **options):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.request(method, f"{server}{path}", headers=headers, timeout=60, **options)


def test_each_request_is_steered_as_it_asks(client):
    answers = [text(chat(client, steering)) for steering in MIXED]
    assert len(set(answers)) == len(MIXED)
    assert [streamed(client, steering) for steering in MIXED] == answers


def test_the_request_of_the_docs(server, client):
    block = blocks()[0].replace("http://127.0.0.1:8000", server).replace('"none"', repr(KEY))
    block = block.replace(str(sample_model_path()), "smol").replace("formality", "warm").replace("humor", "cool")
    exec(block.replace("extra_body=", "max_tokens=4, extra_body="), {})
    assert text(chat(client, {"warm": 0.8, "cool": -0.5}, tokens=4))


def test_the_requests_of_the_tutorial(server, capsys):
    (block,) = blocks("tutorials/vllm.md")
    block = block.replace("http://127.0.0.1:8000", server).replace('"none"', repr(KEY))
    exec(block.replace(str(sample_model_path()), "smol").replace("formality", "warm"), {})
    answers = re.findall(r"^\[(?:-1|0|1)\] (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert len(set(answers)) == 3


def test_completions_and_responses_are_steered_too(client):
    def complete(steering):
        answer = client.completions.create(
            model="smol", prompt="The sea is", temperature=0, max_tokens=12, extra_body=body(steering)
        )
        return answer.choices[0].text

    def respond(steering):
        answer = client.responses.create(
            model="smol", input="The sea is", temperature=0, max_output_tokens=12, extra_body=body(steering)
        )
        return answer.output_text

    for ask in (complete, respond):
        assert ask(WARM) == ask({"warm": 1.0}) != ask(None)


def test_sixty_four_clients_at_once(client, server):
    requests = [(PROMPTS[n % len(PROMPTS)], MIXED[n % len(MIXED)]) for n in range(64)]
    alone = {str(r): text(chat(client, r[1], r[0], tokens=8)) for r in {str(r): r for r in requests}.values()}

    async def one(prompt, steering):
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0, timeout=300) as mine:
            return text(await chat(mine, steering, prompt, tokens=8))

    async def all_at_once():
        return await asyncio.gather(*(one(*request) for request in requests))

    assert asyncio.run(all_at_once()) == [alone[str(request)] for request in requests]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ({"wram": 1.0}, "Unknown behaviour 'wram'"),
        ({"warm": 1e9}, "it must be a number from -10 to 10"),
        ({"warm": "1"}, "it must be a number"),
        ({"behaviors": {"warm": 1.0}, "vector": [0.1]}, "steering has no 'vector'"),
        ({"behaviors": {"warm": 1.0}, "layers": [99]}, "has no vector at layer 99"),
        ("/etc/passwd", "it must be an object"),
    ],
)
def test_what_cannot_be_met_is_a_400(client, steering, message, stream):
    with pytest.raises(openai.BadRequestError, match=message):
        chat(client, steering, stream=stream)
    assert text(chat(client, tokens=2))


def test_numbers_that_are_none(server):
    head = '{"model": "smol", "messages": [{"role": "user", "content": "Hi"}], "steering": {"warm": '
    for number in ("NaN", "Infinity", "1e999", "1" * 5000):
        answer = get(server, "/v1/chat/completions", method="POST", content=f"{head}{number}}}}}")
        assert answer.status_code == 400, number


def test_steering_where_it_would_not_act_is_refused(client, server):
    with pytest.raises(openai.BadRequestError, match="beam search does not pass steering on"):
        client.completions.create(
            model="smol", prompt="Hi", max_tokens=2, extra_body={"use_beam_search": True, "n": 2} | body(WARM)
        )
    answer = get(server, "/v1/messages", method="POST", json={"steering": WARM})
    assert answer.status_code == 400
    assert "/v1/messages does not steer; use one of: /v1/chat/completions" in answer.json()["error"]["message"]
    unsteered = {"model": "smol", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    assert get(server, "/v1/messages", method="POST", json=unsteered).status_code == 200


def test_behaviours_are_listed_to_those_with_the_key(server):
    assert get(server, "/v1/steering", key=None).status_code == 401
    listed = get(server, "/v1/steering").json()
    assert (listed["model"], listed["max_strength"]) == (str(sample_model_path()), 10.0)
    assert {row["name"]: (row["acting_layers"], row["dim"], row["safe_range"]) for row in listed["data"]} == {
        "calm": ([20], 576, [-1.0, 1.0]), "cool": ([15], 576, None), "spread": ([6, 18, 24], 576, None),
        "warm": ([15], 576, None),
    }  # fmt: skip


def test_the_playground_shows_the_answers_of_transformers(server, smollm, tokenizer, vectors):
    at_server = VllmBackend.connect(server, KEY)
    here = TransformersBackend.open(lambda: (smollm, tokenizer), str(vectors))
    assert [each.name for each in at_server.behaviors] == ["calm", "cool", "spread", "warm"]
    assert [each.safe_range for each in at_server.behaviors] == [(-1.0, 1.0), None, None, None]
    request = Request(
        PROMPTS[0], {"warm": 1.0, "cool": 0.4, "calm": 0.0, "spread": 0.3}, "generated", max_new_tokens=24
    )
    seen = list(at_server.compare(request))
    assert seen[-1] == list(here.compare(request))[-1]
    assert any(first and second and second != seen[-1][1] for first, second in seen), "not side by side"
    assert list(at_server.compare(replace(request, strengths={})))[-1] == seen[-1][:1]

    environment = os.environ | {"VLLM_API_KEY": KEY}
    snippets = at_server.snippets(request)
    assert KEY not in snippets.python + snippets.json + snippets.curl
    printed = subprocess.check_output([sys.executable, "-c", snippets.python], text=True, env=environment)
    assert printed == seen[-1][1] + "\n"
    answer = json.loads(subprocess.check_output(["bash", "-c", snippets.curl], text=True, env=environment))
    assert answer["choices"][0]["message"]["content"] == seen[-1][1]


def test_the_playground_explains_what_a_server_refuses(server):
    with pytest.raises(ServerError, match=r"wants a key. Start the playground with the server's in VLLM_API_KEY"):
        VllmBackend.connect(server)
    there = VllmBackend.connect(f"{server}/v1/", KEY)
    with pytest.raises(ServerError, match=r"refuses: .*it must be a number from -10 to 10"):
        list(there.compare(Request("Hi", {"warm": 11.0}, max_new_tokens=2)))


def test_vectors_are_read_again(client, server, vectors):
    assert get(server, "/v1/steering/reload", key=None, method="POST").status_code == 401
    random_set("new", (15,), 9).save(vectors / "new")
    try:
        listed = get(server, "/v1/steering/reload", method="POST").json()
        assert "new" in {row["name"] for row in listed["data"]}
        assert text(chat(client, {"new": 1.0})) != text(chat(client))
        random_set("new", (3,), 9).save(vectors / "new")
        refused = get(server, "/v1/steering/reload", method="POST")
        assert (refused.status_code, "stay as they were" in refused.text) == (400, True)
    finally:
        for path in (vectors / "new").iterdir():
            path.unlink()
        (vectors / "new").rmdir()
    assert text(chat(client, {"new": 1.0})) != text(chat(client))


def test_metrics(client, server):
    def counted(name):
        lines = get(server, "/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    warm = 'rotalabs_steer_requests_total{behavior="warm",scope="all"}'
    before, refused = counted(warm), counted("rotalabs_steer_refused_requests_total")
    chat(client, WARM, tokens=2)
    with pytest.raises(openai.BadRequestError):
        chat(client, {"wram": 1.0})
    assert counted(warm) == before + 1
    assert counted("rotalabs_steer_refused_requests_total") == refused + 1
