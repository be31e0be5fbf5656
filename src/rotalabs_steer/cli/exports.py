"""The verbs `export` and `bake`: vectors for llama.cpp, and models that carry their steering in their weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rotalabs_steer.cli.consoles import notes, print_json
from rotalabs_steer.cli.layers import layers_of, name_layers
from rotalabs_steer.cli.named_vectors import layers_to_act, load_named, one_strength, say_not_steering
from rotalabs_steer.cli.options import ActingLayers, Json, Model, Quiet, Vectors
from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.strengths_in_text import parse_vectors

if TYPE_CHECKING:
    from rotalabs_steer.steering.strengths_in_text import NamedVectors
    from rotalabs_steer.vectors import SteeringVector

Strength = Annotated[float | None, typer.Option(help="Multiplier of the vectors; by default 1.")]
AllLayers = Annotated[bool, typer.Option("--all-layers", help="Every layer of the set acts.")]


class Kind(StrEnum):
    """What `bake` can fold into weights."""

    ADD = "add"
    ABLATE = "ablate"


def export(
    vectors: Vectors,
    target: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The control vector to write.")],
    strength: Strength = None,
    layers: ActingLayers = None,
    all_layers: AllLayers = False,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Write strength times vector, or the vector and its strength.")
    ] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a GGUF control vector for llama.cpp.

    Example: `rotalabs-steer export tuned/formality=0.8 formality.gguf`
    """
    from rotalabs_steer.engines.control_vectors import export_control_vector

    if target.is_dir():
        raise OptionError(f"{target} is a folder; give the name of the GGUF file to write.")

    named = parse_vectors(vectors)
    factor = one_strength(named, strength)
    chosen = _load(named, layers, all_layers)
    console = notes(quiet)
    if all_layers and len(chosen) > 1 and chosen[0].layer_index == 0:
        console.print("Layer 0 is left out: llama.cpp cannot steer it.")
        del chosen[0]
    export_control_vector(chosen, target, factor, fold_strength=fold)
    flag = f"--control-vector {target}" if fold else f"--control-vector-scaled {target}:{factor:g}"
    console.print(f"{_describe(chosen)} at strength {factor:g} written to {target}; run llama.cpp with {flag}")
    if as_json:
        print_json(_facts(chosen, factor) | {"folded": fold, "file": str(target), "llama_cpp": flag})


def bake(
    model: Model,
    vectors: Vectors,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the steered model; it must be new.")],
    strength: Strength = None,
    layers: ActingLayers = None,
    all_layers: AllLayers = False,
    intervention: Annotated[Kind, typer.Option(help="Add the vectors, or take out the direction of one.")] = Kind.ADD,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model whose weights steer it. It is an ordinary checkpoint for any engine.

    Example: `rotalabs-steer bake sample tuned/formality=0.8 formal-model`
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OptionError(f"{target} exists and is not an empty folder. Name a new one.")
    named = parse_vectors(vectors)
    factor = one_strength(named, strength)
    chosen = _load(named, layers, all_layers)

    from rotalabs_steer.baking import bake as bake_model
    from rotalabs_steer.cli.loading import load_model

    console = notes(quiet)
    loaded = load_model(model, console=console)
    console.print(f"{loaded}; {_describe(chosen)}, strength {factor:g}")
    baked = bake_model(loaded.network, chosen, factor, intervention=intervention.value)
    baked.save_pretrained(target)
    loaded.chat.tokenizer.save_pretrained(target)
    console.print(f"{type(baked).__name__} with {_describe(chosen)} at strength {factor:g} written to {target}")
    if as_json:
        print_json(loaded.facts | _facts(chosen, factor) | {"intervention": intervention.value, "folder": str(target)})


def _load(named: NamedVectors, layers: list[str] | None, all_layers: bool) -> list[SteeringVector]:
    """The vectors that are to act."""
    if all_layers and (layers or named.layers):
        raise OptionError("--layers and --all-layers contradict each other. Use one of them.")
    stored = load_named(layers_to_act(named, layers_of(layers)))
    say_not_steering([stored])
    return list(stored) if all_layers else stored.acting


def _describe(vectors: list[SteeringVector]) -> str:
    return f"{vectors[0].behavior} ({name_layers([vector.layer_index for vector in vectors])})"


def _facts(vectors: list[SteeringVector], strength: float) -> dict[str, Any]:
    layers = [vector.layer_index for vector in vectors]
    return {"behavior": vectors[0].behavior, "layers": layers, "strength": strength, "scope": "all"}
