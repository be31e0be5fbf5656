"""The verb `serve`: an OpenAI-compatible vLLM server that steers."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder or Hugging Face id.")],
    vectors: Annotated[
        str, typer.Option(help="Folder of vector sets, one set, or the id of one on the Hugging Face Hub.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --api-key.")
    ] = "127.0.0.1",
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
    """Serve a model with vLLM and steer each request as it asks. Takes the options of `vllm serve`, too."""
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
