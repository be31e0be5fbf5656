"""The verbs `export` and `bake`: vectors for llama.cpp, and models that carry their steering in their weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rotalabs_steer.cli.steering_options import say_not_steering
from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from rotalabs_steer.vectors import SteeringVector

Vectors = Annotated[
    str,
    typer.Argument(
        metavar="VECTORS", help="A vector set or vector: a path, or OWNER/NAME or OWNER/NAME@REVISION on the Hub."
    ),
]
Strength = Annotated[float, typer.Option(help="Multiplier of the vectors.")]
Layers = Annotated[
    list[int] | None,
    typer.Option("--layer", help="Layer that acts, in place of the set's acting layers. Repeatable."),
]
AllLayers = Annotated[bool, typer.Option("--all-layers", help="Every layer of the set acts.")]


class Kind(StrEnum):
    """What `bake` can fold into weights."""

    ADD = "add"
    ABLATE = "ablate"


def export(
    vectors: Vectors,
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The control vector to write.")],
    strength: Strength = 1.0,
    layer: Layers = None,
    all_layers: AllLayers = False,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Write strength times vector, or the vector and its strength.")
    ] = True,
) -> None:
    """Writes vectors as a GGUF control vector for llama.cpp."""
    from rotalabs_steer.engines.control_vectors import export_control_vector

    if target.is_dir():
        raise OptionError(f"{target} is a folder; give the name of the GGUF file to write.")

    chosen = _load(vectors, layer, all_layers)
    export_control_vector(chosen, target, strength, fold_strength=fold)
    flag = f"--control-vector {target}" if fold else f"--control-vector-scaled {target}:{strength:g}"
    _say(f"{_describe(chosen)} at strength {strength:g} written to {target}; run llama.cpp with {flag}")


def bake(
    model: Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or `sample`.")],
    vectors: Vectors,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the steered model; it must be new.")],
    strength: Strength = 1.0,
    layer: Layers = None,
    all_layers: AllLayers = False,
    intervention: Annotated[Kind, typer.Option(help="Add the vectors, or take out the direction of one.")] = Kind.ADD,
) -> None:
    """Writes a model that is steered by its weights: an ordinary checkpoint for any engine."""
    from rotalabs_steer.plans import check_strength

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OptionError(f"{target} exists and is not an empty folder. Name a new one.")
    check_strength(strength)
    chosen = _load(vectors, layer, all_layers)

    from rotalabs_steer.baking import bake as bake_model
    from rotalabs_steer.cli.loading import load_model

    loaded, tokenizer = load_model(model)
    baked = bake_model(loaded, chosen, strength, intervention=intervention.value)
    baked.save_pretrained(target)
    tokenizer.tokenizer.save_pretrained(target)
    _say(f"{type(baked).__name__} with {_describe(chosen)} at strength {strength:g} written to {target}")


def _load(source: str, layers: list[int] | None, all_layers: bool) -> list[SteeringVector]:
    """The vectors that are to act."""
    from rotalabs_steer.integrations.vector_sources import load_vectors

    if layers and all_layers:
        raise OptionError("--layer and --all-layers contradict each other. Use one of them.")
    stored = load_vectors(source)
    say_not_steering([stored])
    if all_layers:
        return list(stored)
    return (stored.with_acting_layers(dict.fromkeys(layers)) if layers else stored).acting


def _describe(vectors: list[SteeringVector]) -> str:
    layers = ", ".join(str(vector.layer_index) for vector in vectors)
    return f"{vectors[0].behavior} (layer{'' if len(vectors) == 1 else 's'} {layers})"


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)
