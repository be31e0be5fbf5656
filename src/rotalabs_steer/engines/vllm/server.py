"""Runs `vllm serve` with steering configured."""

from __future__ import annotations

import ipaddress
import json
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from rotalabs_steer.engines.vllm.settings import PLUGIN_NAME, steering_config
from rotalabs_steer.errors import OptionError, missing_dependency

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_HOST = "127.0.0.1"


def serve(
    model: str,
    vectors: str | os.PathLike[str],
    *,
    host: str = DEFAULT_HOST,
    port: int = 8000,
    api_key: str | None = None,
    options: Sequence[str] = (),
    **steering: Any,
) -> None:
    """Runs an OpenAI-compatible server until it is stopped.

    Args:
        vectors: as for `steering_config`.
        options: further options of `vllm serve`, as on its command line.
        steering: options of `steering_config`.

    Raises:
        OptionError: other machines could reach the server without a key, or an option is refused.
        MissingDependencyError: vLLM is not installed.
    """
    arguments = server_arguments(model, vectors, host, port, api_key, options, steering)
    try:
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise missing_dependency("Serving with vLLM", "vllm", error) from error
    if api_key is not None:
        os.environ["VLLM_API_KEY"] = api_key  # not on a command line that every user of the machine can read
    os.environ["VLLM_PLUGINS"] = allowed_plugins(os.environ.get("VLLM_PLUGINS"))
    cli_env_setup()
    parsed = make_arg_parser(FlexibleArgumentParser(prog="rotalabs-steer serve")).parse_args(arguments)
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


def server_arguments(
    model: str,
    vectors: str | os.PathLike[str],
    host: str,
    port: int,
    api_key: str | None,
    options: Sequence[str],
    steering: dict[str, Any],
) -> list[str]:
    """The command line of `vllm serve`.

    Raises:
        OptionError: as in `serve`.
    """
    own = {"--host": "--host before --", "--additional-config": "options of this command", "--api-key": "--api-key"}
    for option in options:
        name = option.partition("=")[0].replace("_", "-")
        if name in own:
            raise OptionError(f"{name} is set by rotalabs-steer serve: use {own[name]}.")
    if not is_local(host) and not (api_key or os.environ.get("VLLM_API_KEY")):
        raise OptionError(
            f"On {host} the server could be reached from other machines by anyone. Pass --api-key, or leave --host at "
            f"{DEFAULT_HOST}."
        )
    config = json.dumps(steering_config(vectors, **steering))
    return [model, "--host", host, "--port", str(port), "--additional-config", config, *options]


def allowed_plugins(allowed: str | None) -> str:
    """A value of `VLLM_PLUGINS` with which vLLM loads this plugin and whatever it would have loaded without it.

    vLLM loads a plugin that has routes only if `VLLM_PLUGINS` names it. If the variable is set, it loads no others.
    """
    if allowed is not None:
        names = [name for name in allowed.split(",") if name]
    else:
        names = [plugin.name for plugin in entry_points(group="vllm.general_plugins")]
        for group in ("vllm.platform_plugins", "vllm.io_processor_plugins", "vllm.stat_logger_plugins"):
            names += [plugin.name for plugin in entry_points(group=group)]
    return ",".join(dict.fromkeys([*names, PLUGIN_NAME]))


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server on this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
