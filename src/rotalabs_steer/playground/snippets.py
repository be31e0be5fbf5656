"""A request as text to copy: Python, JSON and curl. Each gives the steered answer of the page."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rotalabs_steer.playground.comparisons import Request

KEY_VARIABLE = "VLLM_API_KEY"


def request_body(request: Request, model: str, template_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of the request to `/v1/chat/completions` of `rotalabs-steer serve`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": request.messages,
        "max_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    if template_options:
        body["chat_template_kwargs"] = dict(template_options)
    if request.acting:
        body["steering"] = {"behaviors": request.acting, "scope": request.scope}
    return body


def json_snippet(request: Request, model: str, template_options: Mapping[str, Any] | None = None) -> str:
    """The body as JSON. It names an intervention that servers do not have, so that a server refuses the request."""
    body = request_body(request, model, template_options)
    if request.acting and request.intervention != "add":
        body["steering"]["intervention"] = request.intervention
    return json.dumps(body, indent=2, ensure_ascii=False)


def curl_snippet(
    request: Request,
    model: str,
    server: str,
    *,
    key: bool = False,
    remark: str = "",
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """A command for the shell.

    Args:
        server: address with `/v1`.
        key: whether to send the key in the environment.
        remark: a comment before the command.
    """
    if request.acting and request.intervention != "add":
        return f"# A vLLM server steers by adding; {request.intervention} runs in transformers only.\n"
    lines = [
        f"curl {shlex.quote(f'{server}/chat/completions')}",
        "-H 'Content-Type: application/json'",
        *([f'-H "Authorization: Bearer ${KEY_VARIABLE}"'] if key else []),
        f"-d {shlex.quote(json_snippet(request, model, template_options))}",
    ]
    comment = "".join(f"# {line}\n" for line in remark.splitlines())
    return comment + " \\\n  ".join(lines) + "\n"


def python_snippet(
    request: Request,
    model: str,
    folders: Mapping[str, Path],
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """A program for transformers.

    Args:
        folders: the folder of each vector set, by behaviour.
    """
    given = f"    **{dict(template_options)!r},\n" if template_options else ""
    imports = ["import torch", "from transformers import AutoModelForCausalLM, AutoTokenizer"]
    vectors, steered = "", ""
    if request.acting:
        imports += ["", "import rotalabs_steer as rs"]
        strengths = "".join(f"    {_text(folders[name])}: {number!r},\n" for name, number in request.acting.items())
        vectors = f"vectors = {{\n{strengths}}}\n"
        options = f"scope={_text(request.scope)}, intervention={_text(request.intervention)}"
        steered = f"with rs.steer(model, vectors, {options}):\n    "
    drawn = f"do_sample=True, temperature={request.temperature!r}" if request.temperature else "do_sample=False"
    return (
        "\n".join(imports)
        + f"\n\nname = {_text(model)}\n"
        + 'model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")\n'
        + "tokenizer = AutoTokenizer.from_pretrained(name)\n\n"
        + vectors
        + f'chat = [{{"role": "user", "content": {_text(request.prompt)}}}]\n'
        + "inputs = tokenizer.apply_chat_template(\n"
        + '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True'
        + (f",\n{given}" if given else "\n")
        + ")\n"
        + f"torch.manual_seed({request.seed})\n"
        + f"{steered}output = model.generate(**inputs, max_new_tokens={request.max_new_tokens}, {drawn})\n"
        + 'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )


def client_snippet(request: Request, model: str, server: str, *, key: bool = False) -> str:
    """A program for the server, with the openai client."""
    body = request_body(request, model)
    steering = body.pop("steering", None)
    arguments = "".join(f"    {name}={value!r},\n" for name, value in body.items())
    extra = f"    extra_body={{'steering': {steering!r}}},\n" if steering else ""
    imports, secret = ("import os\n\n", f'os.environ["{KEY_VARIABLE}"]') if key else ("", '"none"')
    return (
        f"{imports}from openai import OpenAI\n\n"
        f"client = OpenAI(base_url={_text(server)}, api_key={secret})\n"
        f"answer = client.chat.completions.create(\n{arguments}{extra})\n"
        "print(answer.choices[0].message.content)\n"
    )


def _text(value: object) -> str:
    """A Python literal, in double quotes where that needs no escapes."""
    plain = repr(str(value))
    return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in plain else plain
