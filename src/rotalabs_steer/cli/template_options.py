"""What the model's chat template is given besides the messages: `--template NAME=VALUE`."""

from __future__ import annotations

from typing import Annotated

import typer

Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An option of the model's chat template, such as enable_thinking=false. The value is JSON, or a text. "
        "Repeatable.",
    ),
]
