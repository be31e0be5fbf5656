"""Arguments and options that several verbs share, so that one thing has one name and one help text everywhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or `sample`.")]

_SET = "A set is a path, or OWNER/NAME or OWNER/NAME@REVISION on the Hub."
Vectors = Annotated[
    str,
    typer.Argument(
        metavar="VECTORS[:LAYERS][=STRENGTH]",
        help=f"A vector set. {_SET} Layers and strength can be named here or by options.",
    ),
]
Steer = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        "-s",
        metavar="VECTORS[:LAYERS][=STRENGTH]",
        help="A vector set, its layers (by default its acting layers) and its strength (by default 1), as in "
        f"tuned/humor:14=0.8. {_SET} Repeatable. Strengths from -1 to 1 of a calibrated set are safe. What a "
        "raw set's strength costs is measured, unless --quiet, and warned of if it is far more than that.",
    ),
]
Scope = Annotated[str, typer.Option(help="Which tokens are steered: all, first, last, prompt or generated.")]
Intervention = Annotated[str, typer.Option(help="add, add_keeping_norm, ablate, clamp or rotate.")]


def layers_option(purpose: str) -> Any:
    """The option that names layers, spelled alike in every verb; `purpose` is its help text there."""
    return typer.Option("--layers", "--layer", "-l", metavar="LAYERS", help=purpose)


ActingLayers = Annotated[
    list[str] | None,
    layers_option("0-based layers that act together, such as 14 or 8-10,14, instead of the set's acting layers."),
]

_PAIRS = "A built-in behaviour, or a file of pairs."
Pairs = Annotated[str | None, typer.Option("--pairs", "--behavior", "-b", metavar="NAME_OR_FILE", help=_PAIRS)]
SeveralPairs = Annotated[
    list[str] | None,
    typer.Option("--pairs", "--behavior", "-b", metavar="NAME_OR_FILE", help=f"{_PAIRS} Repeatable."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="FIELD=COLUMN", help="Column of a field, as in positive=chosen. Repeatable."),
]

System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]
Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="An option of the model's chat template, such as enable_thinking=false. The value is JSON, or a string. "
        "Repeatable.",
    ),
]
NewTokens = Annotated[
    int, typer.Option("--max-new-tokens", "-n", min=1, help="Maximum number of new tokens per answer.")
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", min=0.0, help="0 is greedy decoding.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers, for a temperature above 0.")]

ServedVectors = typer.Option(
    "--vectors", "-v", help="Folder of vector sets, one set, or the id of one on the Hugging Face Hub."
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text, also for an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")]
