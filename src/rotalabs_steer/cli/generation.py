"""The verbs `generate` and `chat`: a model's words, steered."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rotalabs_steer.cli.steering_options import (
    Intervention,
    Scope,
    Steer,
    check_intervention,
    load_sets,
    parse_steer,
)
from rotalabs_steer.cli.template_options import Template  # noqa: TC001 - typer reads the annotation
from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.template_options import parse_template_options

if TYPE_CHECKING:
    from torch import nn

    from rotalabs_steer.datasets import ChatTokenizer
    from rotalabs_steer.injection import MultiVectorInjector

Model = Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or `sample`.")]
NewTokens = Annotated[int, typer.Option(min=1, help="An answer is cut there.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy decoding.")]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]

_HELP = "/strength BEHAVIOUR NUMBER   /strengths   /reset   /quit"


def generate(
    model: Model,
    prompts: Annotated[list[str], typer.Argument(help="Prompts; - reads them from standard input, one a line.")],
    steer: Steer = None,
    scope: Scope = "all",
    intervention: Intervention = "add",
    system: System = None,
    template: Template = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="For a temperature above 0.")] = 0,
    compare: Annotated[bool, typer.Option("--compare", help="Show the unsteered answers, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Answers prompts, steered."""
    from rotalabs_steer.positions import check_scope

    parsed = parse_steer(steer)
    asked = [line.strip() for line in sys.stdin if line.strip()] if prompts == ["-"] else prompts
    if not asked:
        raise OptionError("There are no prompts on standard input.")
    if compare and not parsed:
        raise OptionError("--compare needs something to compare with: name vectors with --steer.")
    check_scope(scope)  # what is cheap to know comes before the model, which takes its time
    check_intervention(intervention)
    sets, strengths = load_sets(parsed)
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.evaluation.answers import Sampling, answer_prompts
    from rotalabs_steer.injection import MultiVectorInjector

    loaded, tokenizer = load_model(model, parse_template_options(template))
    injector = MultiVectorInjector(loaded, sets, strengths, scope, intervention=intervention) if sets else None
    sampling = Sampling(max_new_tokens, temperature, seed, system_prompt=system)
    unsteered = answer_prompts(loaded, tokenizer, asked, sampling).texts if compare or injector is None else None
    steered = None
    if injector is not None:
        with injector:
            steered = answer_prompts(loaded, tokenizer, asked, sampling).texts
    if as_json:
        columns = {"prompt": asked, "unsteered": unsteered, "steered": steered}
        known = {name: texts for name, texts in columns.items() if texts is not None}
        rows = [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
        document = {"strengths": {} if injector is None else injector.strengths, "answers": rows}
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    console = Console()
    for number, prompt in enumerate(asked):
        if len(asked) > 1:
            console.print(Text(prompt, style="bold"), soft_wrap=True)
        for label, texts in (("unsteered: ", unsteered), ("steered: ", steered)):
            if texts is not None:
                console.print(Text.assemble((label if compare else "", "cyan"), texts[number]), soft_wrap=True)


def chat(
    model: Model,
    steer: Steer = None,
    scope: Scope = "all",
    intervention: Intervention = "add",
    system: System = None,
    template: Template = None,
    max_new_tokens: NewTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Talks with a steered model; strengths can be changed on the way."""
    from rotalabs_steer.positions import check_scope

    check_scope(scope)
    check_intervention(intervention)
    sets, strengths = load_sets(parse_steer(steer))
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.injection import MultiVectorInjector

    loaded, tokenizer = load_model(model, parse_template_options(template))
    injector = MultiVectorInjector(loaded, sets, strengths, scope, intervention=intervention) if sets else None
    start = [] if system is None else [{"role": "system", "content": system}]
    tokenizer.render([*start, {"role": "user", "content": "Hello!"}])  # what cannot be rendered is an error at once
    console = Console()
    console.print(_HELP, style="dim", highlight=False)
    messages = list(start)
    with injector or contextlib.nullcontext():
        while True:
            try:
                said = console.input("[bold]> [/]").strip()
            except EOFError:
                return
            if said == "/quit":
                return
            if said == "/reset":
                messages = list(start)
            elif said.startswith("/"):
                console.print(_command(said, injector), highlight=False, markup=False)
            elif said:
                messages.append({"role": "user", "content": said})
                answer = _stream(loaded, tokenizer, messages, max_new_tokens, temperature)
                messages.append({"role": "assistant", "content": answer})


def _command(said: str, injector: MultiVectorInjector | None) -> str:
    words = said.split()
    try:
        if words[0] == "/strength" and injector is not None and len(words) == 3:
            injector.set_strength(words[1], float(words[2]))
        elif words != ["/strengths"]:
            return _HELP
    except (KeyError, ValueError) as error:
        return str(error.args[0])
    return ", ".join(f"{name} {value}" for name, value in injector.strengths.items()) if injector else "Nothing steers."


def _stream(
    model: nn.Module, chat: ChatTokenizer, messages: list[dict[str, str]], max_new_tokens: int, temperature: float
) -> str:
    """Prints the answer as it comes, and gives it."""
    import torch
    from transformers import TextStreamer

    from rotalabs_steer.decoder import input_device

    ids = torch.tensor([chat.rendered_ids(messages)], device=input_device(model))
    settings: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        streamer=TextStreamer(chat.tokenizer, skip_prompt=True, skip_special_tokens=True),
        **settings,
    )
    return chat.decode(output[0, ids.shape[1] :]).strip()
