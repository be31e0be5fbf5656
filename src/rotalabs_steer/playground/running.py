"""The server of the page."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from rotalabs_steer.engines.vllm.server import is_local
from rotalabs_steer.errors import OptionError, missing_dependency
from rotalabs_steer.playground.opening import VLLM, Choice, Opener

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def run_playground(
    load_model: Callable[[str], tuple[nn.Module, Any]],
    choice: Choice,
    *,
    host: str,
    port: int,
    api_key: str | None = None,
    ready: Callable[[str], None],
) -> None:
    """Shows the page until it is stopped.

    Args:
        load_model: returns the model and tokenizer of a name.
        choice: what is loaded first; nothing, if it names neither vectors nor a server.
        api_key: the key that is sent to a server.
        ready: is called with the address of the page.

    Raises:
        OptionError: other machines reach the address and nothing is chosen, or the port is taken.
        SteeringError, OSError: the choice cannot be opened.
        MissingDependencyError: gradio is not installed.
    """
    fixed = not is_local(host)
    named = bool(choice.server if choice.engine == VLLM else choice.vectors)
    if fixed and not named:
        raise OptionError(
            f"On {host} other machines reach the page, so it does not let them choose what is loaded: name a model and "
            "--vectors, or a --server."
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise missing_dependency("The playground", "playground", error) from error
    from rotalabs_steer.playground.page import Page

    opener = Opener(load_model, api_key)
    page = Page(opener, choice, opener.open(choice) if named else None, fixed=fixed)
    fonts = ["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    )
    with as_file(files("rotalabs_steer.playground").joinpath("page.css")) as style:
        try:
            _, address, _ = page.blocks.launch(
                server_name=host,
                server_port=port,
                theme=theme,
                css_paths=style,
                footer_links=[],
                quiet=True,
                share=False,
                ssr_mode=False,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise OptionError(f"Port {port} is taken. Choose another with --port.") from error
    ready(address)
    try:
        page.blocks.block_thread()
    finally:
        page.blocks.close(verbose=False)
