"""How every verb shows an error: one sentence, and the traceback only with `--debug`."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from rich.text import Text
from typer.core import TyperGroup

from rotalabs_steer.cli.consoles import notes, print_json, warning
from rotalabs_steer.errors import SteeringError, SteeringWarning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def explain(error: Exception) -> str | None:
    """The message for an error of this package, the system, the network or a missing package.

    None for any other error: it is a fault of this program and keeps its traceback.
    """
    if isinstance(error, SteeringError):
        return str(error)
    if _is_out_of_memory(error):
        return (
            "The device has too little memory. Use a smaller model or batch, or close other programs that use "
            f"the device. ({_first_line(error)})"
        )
    if _is_of_the_network(error):
        return f"The network failed: {_first_line(error)}"
    if isinstance(error, ImportError) and not (error.name or "").startswith("rotalabs_steer"):
        return f"This model needs a package that is missing: {_first_line(error)}"
    return str(error) or type(error).__name__ if isinstance(error, OSError) else None


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # not imported here: if it is not loaded, the error is not torch's
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def _is_of_the_network(error: Exception) -> bool:
    """Compares names, because the HTTP client of huggingface_hub differs between its releases."""
    return any(kind.__name__ == "HTTPError" for kind in type(error).__mro__) and not isinstance(error, OSError)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class VerbGroup(TyperGroup):
    """The verbs. Errors that are meant for the user become a message and an exit code.

    With `--json`, the message is a JSON document on standard output, where the result would have been.
    """

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb; Ctrl-C gives exit code 130."""
        as_json = _asks_for_json([*ctx._protected_args, *ctx.args])  # a verb's own options are not parsed yet
        try:
            with _short_warnings():
                return super().invoke(ctx)
        except BrokenPipeError:  # `rotalabs-steer ... | head`: click ends quietly
            raise
        except Exception as error:
            if as_json and (said := getattr(error, "format_message", None)) is not None:  # click's: a mistyped command
                _fail(said(), type(error).__name__, error.exit_code, as_json)  # type: ignore[attr-defined]
            message = explain(error)
            if message is None or (ctx.obj or {}).get("debug"):
                raise
            _fail(message, type(error).__name__, 1, as_json)
        except KeyboardInterrupt as stop:
            _fail(str(stop) or "Stopped. Nothing half-written was left.", "KeyboardInterrupt", 130, as_json)


@contextmanager
def if_stopped(hint: str) -> Iterator[None]:
    """Tells a user who presses Ctrl-C in this block how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Stopped. {hint}") from None


def _fail(message: str, kind: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": {"kind": kind, "message": message, "exit_code": code}})
    elif code == 130:
        notes().print(f"\n{message}")
    else:
        notes().print(Text.assemble(("error:", "bold red"), f" {message}"))
    sys.exit(code)


def _asks_for_json(arguments: Sequence[str]) -> bool:
    return "--json" in arguments[: arguments.index("--") if "--" in arguments else None]


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Shows warnings of this package as one sentence, without the line of source that they come from."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, SteeringWarning):
                notes().print(warning(str(message)))
            else:
                shown(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield
