"""The verb `generate`: a model's answers, steered."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from rotalabs_steer.cli import options
from rotalabs_steer.cli.consoles import notes, output, print_json, progress
from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from rotalabs_steer.cli.loading import LoadedModel
    from rotalabs_steer.generation.answers import Sampling


def generate(
    model: options.Model,
    prompts: Annotated[list[str], typer.Argument(help="Prompts; - reads them from standard input, one a line.")],
    steer: options.Steer = None,
    scope: options.Scope = "all",
    intervention: options.Intervention = "add",
    system: options.System = None,
    template: options.Template = None,
    max_new_tokens: options.NewTokens = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    compare: Annotated[bool, typer.Option("--compare", "-c", help="Show the unsteered answers, too.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer prompts, steered. The answer to a single prompt is shown while it is generated.

    Example: `rotalabs-steer generate sample "Hello!" --steer tuned/formality=-1 --compare`
    """
    from contextlib import nullcontext

    from rotalabs_steer.cli.steered import open_steered
    from rotalabs_steer.generation.answers import Sampling, answer_prompts

    asked = [line.strip() for line in sys.stdin if line.strip()] if prompts == ["-"] else prompts
    if not asked:
        raise OptionError("There are no prompts on standard input.")
    if compare and not steer:
        raise OptionError("--compare needs something to compare with: name vectors with --steer.")
    sampling = Sampling(max_new_tokens, temperature, seed, system_prompt=system)
    console = notes(quiet)
    opened = open_steered(model, steer, scope, intervention, template, console)
    costs = [] if quiet and not as_json else opened.costs(console)

    wanted: dict[str, AbstractContextManager[Any]] = {}
    if compare or opened.injector is None:
        wanted["unsteered"] = nullcontext()
    if opened.injector is not None:
        wanted["steered"] = opened.injector
    if not as_json and len(asked) == 1:
        _stream(opened.model, asked[0], sampling, wanted)
        return
    answers: dict[str, tuple[str, ...]] = {}
    with progress(console, f"answering {len(asked)} prompt{'' if len(asked) == 1 else 's'}"):
        for label, steering in wanted.items():
            with steering:
                answers[label] = answer_prompts(opened.model.network, opened.model.chat, asked, sampling).texts
    if not as_json:
        _print(asked, answers)
        return
    rows = [{"prompt": prompt, **{label: answers[label][n] for label in answers}} for n, prompt in enumerate(asked)]
    settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "system": system}
    print_json(opened.facts | {"costs": [dataclasses.asdict(cost) for cost in costs]} | settings | {"answers": rows})


def _stream(
    model: LoadedModel, prompt: str, sampling: Sampling, wanted: dict[str, AbstractContextManager[Any]]
) -> None:
    from rotalabs_steer.cli.streaming import stream_answer

    console = output()
    ids = model.chat.prompt(prompt, sampling.system_prompt)
    for label, steering in wanted.items():
        if len(wanted) > 1:
            console.print(Text(f"{label}: ", "cyan"), end="")
        with steering:
            stream_answer(model.network, model.chat, ids, sampling, write_now)
        typer.echo()


def write_now(text: str) -> None:
    """Writes part of an answer to standard output, where it can be read at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _print(prompts: Sequence[str], answers: dict[str, tuple[str, ...]]) -> None:
    console = output()
    for number, prompt in enumerate(prompts):
        console.print(Text(prompt, style="bold"), soft_wrap=True)
        for label, texts in answers.items():
            shown = f"{label}: " if len(answers) > 1 else ""
            console.print(Text.assemble((shown, "cyan"), texts[number]), soft_wrap=True)
