"""The verb `chat`: a conversation with a steered model."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rotalabs_steer.cli.consoles import Quiet, notes, output
from rotalabs_steer.cli.failures import explain
from rotalabs_steer.cli.generation import Model, NewTokens, Seed, System, Temperature, write_now
from rotalabs_steer.cli.steering_options import (
    Intervention,
    Scope,
    Steer,
    check_intervention,
    load_sets,
    parse_steer,
)
from rotalabs_steer.cli.template_options import Template  # noqa: TC001 - typer reads the annotation
from rotalabs_steer.integrations.template_options import parse_template_options

if TYPE_CHECKING:
    from rotalabs_steer.cli.conversation import Conversation


def chat(
    model: Model,
    steer: Steer = None,
    scope: Scope = "all",
    intervention: Intervention = "add",
    system: System = None,
    template: Template = None,
    max_new_tokens: NewTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Talks with a steered model. /help lists what can be done on the way; Ctrl-C stops an answer."""
    from rotalabs_steer.steering.scopes import check_scope

    check_scope(scope)
    check_intervention(intervention)
    sets, strengths = load_sets(parse_steer(steer))
    from rotalabs_steer.cli.conversation import Conversation, enable_line_editing
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.cli.what_acts import model_facts, name_model, name_vectors, vector_facts
    from rotalabs_steer.generation.answers import Sampling
    from rotalabs_steer.steering.injection import MultiVectorInjector

    sampling = Sampling(max_new_tokens, temperature, seed, system_prompt=system)
    console = notes(quiet)
    loaded, tokenizer = load_model(model, parse_template_options(template), console)
    injector = MultiVectorInjector(loaded, sets, strengths, scope, intervention=intervention) if sets else None
    vectors = vector_facts(sets, strengths)
    facts = model_facts(model, loaded)
    saved = facts | {"vectors": vectors, "scope": scope, "intervention": intervention, "seed": seed}
    conversation = Conversation(loaded, tokenizer, injector, sampling, saved, write_now)
    console.print(f"{name_model(facts)}; {name_vectors(vectors, scope)}")
    console.print("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.", style="dim")
    enable_line_editing()
    with injector or contextlib.nullcontext():
        _talk(conversation)


def _talk(conversation: Conversation) -> None:
    """Reads and answers lines until the user leaves."""
    console = output()
    try:
        while (line := input("> ").strip()) != "/quit":
            shown = _reply(conversation, line)
            if shown is not None:
                console.print(shown, highlight=False, markup=False, soft_wrap=True)
    except (EOFError, KeyboardInterrupt):
        console.print()


def _reply(conversation: Conversation, line: str) -> str | None:
    """Answers a line. An error that ends one answer does not end the conversation: its message is given."""
    try:
        if line.startswith("/"):
            return conversation.command(line)
        if line:
            conversation.say(line)
    except BrokenPipeError:
        raise
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        return message
    return None
