"""The verb `models`: known models, their shapes and their recommended layers."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from rotalabs_steer.cli.consoles import output, print_json
from rotalabs_steer.cli.options import Json


def models(
    name: Annotated[
        str | None, typer.Argument(help="One model: its recommended layers and where they come from.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List known models and their layers.

    Shows the shape of a model and the layers at which behaviours steer well. Any other model works, too.
    """
    from rotalabs_steer.model.configs import MODEL_CONFIGS, get_model_config

    chosen = list(MODEL_CONFIGS.values()) if name is None else [get_model_config(name)]
    if as_json:
        print_json([dataclasses.asdict(config) for config in chosen])
        return
    table = Table(box=None, pad_edge=False)
    console = output()
    if name is None:
        for column in ("model", "layers", "hidden size", "layers recommended for"):
            table.add_column(column, no_wrap=column == "model")
        for config in chosen:
            known = ", ".join(config.recommended_layers)
            if len(config.recommended_layers) > 2:  # the names would not fit 80 columns
                known = f"{len(config.recommended_layers)} behaviours"
            table.add_row(config.name, str(config.num_layers), str(config.hidden_size), known)
    else:
        (config,) = chosen
        console.print(f"{config.name}: {config.num_layers} layers, hidden size {config.hidden_size}", highlight=False)
        for column in ("behaviour", "layers", "where that comes from"):
            table.add_column(column, no_wrap=column == "behaviour")
        for behavior in [*config.recommended_layers, "any other"]:
            layers = ", ".join(map(str, config.get_recommended_layers(behavior)))
            table.add_row(behavior, layers, config.get_provenance(behavior))
    console.print(table)
