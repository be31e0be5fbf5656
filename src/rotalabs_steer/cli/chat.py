"""The verb `chat`: a conversation with a steered model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rotalabs_steer.cli import options
from rotalabs_steer.cli.consoles import notes, output
from rotalabs_steer.cli.failures import explain
from rotalabs_steer.cli.generation import write_now

if TYPE_CHECKING:
    from rotalabs_steer.cli.conversation import Conversation


def chat(
    model: options.Model,
    steer: options.Steer = None,
    scope: options.Scope = "all",
    intervention: options.Intervention = "add",
    system: options.System = None,
    template: options.Template = None,
    max_new_tokens: options.NewTokens = 256,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
) -> None:
    """Talk with a steered model. /help lists the commands; Ctrl-C stops an answer.

    Example: `rotalabs-steer chat sample --steer tuned/formality=-1`
    """
    from rotalabs_steer.cli.conversation import Conversation, enable_line_editing
    from rotalabs_steer.cli.steered import open_steered
    from rotalabs_steer.generation.answers import Sampling

    sampling = Sampling(max_new_tokens, temperature, seed, system_prompt=system)
    console = notes(quiet)
    opened = open_steered(model, steer, scope, intervention, template, console)

    def warn() -> None:
        if not quiet:
            opened.costs(console)

    conversation = Conversation(opened, sampling, write_now, warn)
    warn()
    console.print("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.", style="dim")
    enable_line_editing()
    with opened.steering():
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
