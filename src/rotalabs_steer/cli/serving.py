"""The verb `serve`: an OpenAI-compatible vLLM server that steers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from rotalabs_steer.cli.layers import layers_of
from rotalabs_steer.cli.options import Model, ServedVectors, layers_option
from rotalabs_steer.errors import missing_dependency

_SERVED_NAME = "--served-model-name"


def serve(
    context: typer.Context,
    model: Model,
    vectors: Annotated[str, ServedVectors],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="Key that clients must send; better set in VLLM_API_KEY.")
    ] = None,
    max_strength: Annotated[float, typer.Option(help="Requests that ask for more are refused.")] = 10.0,
    layers: Annotated[
        list[str] | None,
        layers_option("0-based layers to prepare for steering, such as 14 or 8-10,14; by default all with a vector."),
    ] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Take vectors made from another model.")] = False,
) -> None:
    """Serve a model with vLLM, steered by request. Takes the options of `vllm serve`, too.

    Example: `rotalabs-steer serve Qwen/Qwen3-8B --vectors tuned`
    """
    from rotalabs_steer.engines.vllm.server import serve as run_server
    from rotalabs_steer.model.loading import SAMPLE, resolve_source

    chosen = layers_of(layers)
    place, options = model, context.args
    if model == SAMPLE:  # vLLM would look for it on the Hub
        if find_spec("vllm") is None:  # before the sample model is made, which takes half a minute
            raise missing_dependency("Serving with vLLM", "vllm", ModuleNotFoundError(name="vllm"))
        place = resolve_source(model)
        if not any(option.startswith(_SERVED_NAME) for option in options):
            options = [*options, _SERVED_NAME, SAMPLE]
    run_server(
        place,
        vectors,
        host=host,
        port=port,
        api_key=api_key,
        options=options,
        max_strength=max_strength,
        layers=chosen,
        check_model=not any_model,
    )
