"""The verb `generate`: a model's answers, steered."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from rotalabs_steer.cli.consoles import Json, Quiet, notes, output, print_json, progress
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
    from collections.abc import Sequence

    from torch import nn

    from rotalabs_steer.datasets import ChatTokenizer
    from rotalabs_steer.generation.answers import Sampling
    from rotalabs_steer.steering.injection import MultiVectorInjector

Model = Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or `sample`.")]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, help="Maximum number of new tokens per answer.")
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", min=0.0, help="0 is greedy decoding.")]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers, for a temperature above 0.")]


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
    seed: Seed = 0,
    compare: Annotated[bool, typer.Option("--compare", "-c", help="Show the unsteered answers, too.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answers prompts, steered. The answer to a single prompt is shown while it is generated."""
    from rotalabs_steer.steering.scopes import check_scope

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
    from rotalabs_steer.cli.what_acts import model_facts, name_model, name_vectors, vector_facts
    from rotalabs_steer.generation.answers import Sampling
    from rotalabs_steer.steering.injection import MultiVectorInjector

    sampling = Sampling(max_new_tokens, temperature, seed, system_prompt=system)
    console = notes(quiet)
    loaded, tokenizer = load_model(model, parse_template_options(template), console)
    injector = MultiVectorInjector(loaded, sets, strengths, scope, intervention=intervention) if sets else None
    facts, vectors = model_facts(model, loaded), vector_facts(sets, strengths)
    console.print(f"{name_model(facts)}; {name_vectors(vectors, scope)}")

    plain: dict[str, MultiVectorInjector | None] = {"unsteered": None} if compare or injector is None else {}
    wanted = plain | ({} if injector is None else {"steered": injector})
    if not as_json and len(asked) == 1:
        _stream(loaded, tokenizer, asked[0], sampling, wanted)
        return
    with progress(console, f"answering {len(asked)} prompt{'' if len(asked) == 1 else 's'}"):
        answers = {label: _answers(loaded, tokenizer, asked, sampling, one) for label, one in wanted.items()}
    if not as_json:
        _print(asked, answers)
        return
    rows = [{"prompt": prompt, **{label: answers[label][n] for label in answers}} for n, prompt in enumerate(asked)]
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    steering = {"vectors": vectors, "strengths": strengths, "scope": scope, "intervention": intervention}
    print_json(facts | steering | settings | {"system": system, "answers": rows})


def _stream(
    model: nn.Module,
    chat: ChatTokenizer,
    prompt: str,
    sampling: Sampling,
    wanted: dict[str, MultiVectorInjector | None],
) -> None:
    from rotalabs_steer.cli.streaming import stream_answer

    console = output()
    ids = chat.prompt(prompt, sampling.system_prompt)
    for label, injector in wanted.items():
        if len(wanted) > 1:
            console.print(Text(f"{label}: ", "cyan"), end="")
        with injector or contextlib.nullcontext():
            stream_answer(model, chat, ids, sampling, write_now)
        typer.echo()


def write_now(text: str) -> None:
    """Writes part of an answer to standard output, where it can be read at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _answers(
    model: nn.Module,
    chat: ChatTokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    injector: MultiVectorInjector | None,
) -> tuple[str, ...]:
    from rotalabs_steer.generation.answers import answer_prompts

    with injector or contextlib.nullcontext():
        return answer_prompts(model, chat, prompts, sampling).texts


def _print(prompts: Sequence[str], answers: dict[str, tuple[str, ...]]) -> None:
    console = output()
    for number, prompt in enumerate(prompts):
        console.print(Text(prompt, style="bold"), soft_wrap=True)
        for label, texts in answers.items():
            shown = f"{label}: " if len(answers) > 1 else ""
            console.print(Text.assemble((shown, "cyan"), texts[number]), soft_wrap=True)
