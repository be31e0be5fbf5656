"""The verb `playground`: a page in the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rotalabs_steer.cli.consoles import notes
from rotalabs_steer.cli.options import ServedVectors, Template
from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from rotalabs_steer.datasets import ChatTokenizer


def playground(
    model: Annotated[
        str | None, typer.Argument(help="Model folder, Hugging Face id, or `sample`. Can be chosen on the page, too.")
    ] = None,
    vectors: Annotated[str | None, ServedVectors] = None,
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
    """Open a page with a slider for each behaviour. It shows the steered answer beside the unsteered one.

    Example: `rotalabs-steer playground sample --vectors tuned`
    """
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.playground.opening import TRANSFORMERS, VLLM, Choice
    from rotalabs_steer.playground.running import run_playground

    if server is not None and (model is not None or vectors is not None):
        raise OptionError("A server has its own model and vectors: give --server, or a model and --vectors.")
    if (model is None) is not (vectors is None):
        raise OptionError("A model and its vectors go together: give both, as in: playground sample --vectors tuned")
    if server is not None and template:
        raise OptionError("A server renders the prompts itself: start it with the template options instead.")

    def load(name: str) -> tuple[nn.Module, ChatTokenizer]:
        loaded = load_model(name, template, notes())
        return loaded.network, loaded.chat

    run_playground(
        load,
        Choice(TRANSFORMERS if server is None else VLLM, model or "", vectors or "", server or ""),
        host=host,
        port=port,
        api_key=api_key,
        ready=lambda address: typer.echo(f"The playground is at {address} (Ctrl-C ends it)."),
    )
