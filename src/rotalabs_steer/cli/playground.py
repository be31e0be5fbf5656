"""The verb `playground`: a page in the browser."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from rotalabs_steer.cli.consoles import notes
from rotalabs_steer.cli.template_options import Template  # noqa: TC001 - typer reads the annotation
from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.template_options import parse_template_options


def playground(
    model: Annotated[
        str | None, typer.Argument(help="Model folder, Hugging Face id, or `sample`. Can be chosen on the page, too.")
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(
            "--vectors", "-v", help="Folder of vector sets, one set, or the id of one on the Hugging Face Hub."
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Address of a `rotalabs-steer serve` to ask instead of a model in this process.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; on any but this machine's own the choice is fixed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    template: Template = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="The server's key; better set in VLLM_API_KEY.")
    ] = None,
) -> None:
    """Shows a page with a slider for each behaviour, and the steered answer beside the unsteered one."""
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.playground.opening import TRANSFORMERS, VLLM, Choice
    from rotalabs_steer.playground.running import run_playground

    if server is not None and (model is not None or vectors is not None):
        raise OptionError("A server has its own model and vectors: give --server, or a model and --vectors.")
    if (model is None) is not (vectors is None):
        raise OptionError("A model and its vectors go together: give both, as in: playground sample --vectors tuned")
    options = parse_template_options(template)
    if server is not None and options:
        raise OptionError("A server renders the prompts itself: start it with the template options instead.")
    engine = TRANSFORMERS if server is None else VLLM
    run_playground(
        partial(load_model, template_options=options, console=notes()),
        Choice(engine, model or "", vectors or "", server or ""),
        host=host,
        port=port,
        api_key=api_key,
        ready=lambda address: typer.echo(f"The playground is at {address} (Ctrl-C ends it)."),
    )
