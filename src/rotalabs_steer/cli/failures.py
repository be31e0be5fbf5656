"""How every verb shows an error: one sentence, and the traceback only with `--debug`."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from rotalabs_steer.errors import SteeringError


class VerbGroup(TyperGroup):
    """The verbs, with errors that are meant for the user turned into a message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb; Ctrl-C gives exit code 130."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `rotalabs-steer ... | head`: click ends quietly
            raise
        except (SteeringError, OSError) as error:
            if (ctx.obj or {}).get("debug"):
                raise
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            sys.exit(1)
        except KeyboardInterrupt:
            Console(stderr=True).print("\nStopped. Nothing half-written was left.")
            sys.exit(130)
