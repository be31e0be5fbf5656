"""How every verb shows an error: one sentence, and the traceback only with `--debug`."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from rotalabs_steer.errors import SteeringError


def explain(error: Exception) -> str | None:
    """What a user is told of an error: of ours, of the system, of the network, or of a missing package.

    None for any other error, which is a fault of this program and keeps its traceback.
    """
    if isinstance(error, SteeringError):
        return str(error)
    if _is_out_of_memory(error):
        return (
            "The memory of the device does not suffice. Use a smaller model or batch, or close other programs that use "
            f"the device. ({_first_line(error)})"
        )
    if _is_of_the_network(error):
        return f"The network failed: {_first_line(error)}"
    if isinstance(error, ImportError) and not (error.name or "").startswith("rotalabs_steer"):
        return f"A package is missing that this model needs: {_first_line(error)}"
    return str(error) or type(error).__name__ if isinstance(error, OSError) else None


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # an error of torch's comes from a torch that is loaded
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def _is_of_the_network(error: Exception) -> bool:
    """By name, since the HTTP client of huggingface_hub is another one from release to release."""
    return any(kind.__name__ == "HTTPError" for kind in type(error).__mro__) and not isinstance(error, OSError)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class VerbGroup(TyperGroup):
    """The verbs, with errors that are meant for the user turned into a message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb; Ctrl-C gives exit code 130."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `rotalabs-steer ... | head`: click ends quietly
            raise
        except Exception as error:
            message = explain(error)
            if message is None or (ctx.obj or {}).get("debug"):
                raise
            Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
            sys.exit(1)
        except KeyboardInterrupt:
            Console(stderr=True).print("\nStopped. Nothing half-written was left.")
            sys.exit(130)
