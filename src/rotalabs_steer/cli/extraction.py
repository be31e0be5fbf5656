"""The verb `extract`: contrast pairs in, a vector for each layer out."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotation
from typing import Annotated

import typer
from rich.console import Console

from rotalabs_steer.cli.pairs import Columns, parse_columns, read_pairs_of
from rotalabs_steer.cli.template_options import Template  # noqa: TC001 - typer reads the annotation
from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.template_options import parse_template_options


def extract(
    model: Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or `sample`.")],
    pairs: Annotated[
        str, typer.Argument(help="A built-in behaviour, or a file of pairs: of either the training pairs.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the vector set.")],
    column: Columns = None,
    layers: Annotated[
        str | None, typer.Option(help="0-based decoder layers, such as 10,12 or 8-16; by default all.")
    ] = None,
    method: Annotated[str, typer.Option(help="Extraction method; see the page on methods.")] = "mean_difference",
    position: Annotated[
        str | None,
        typer.Option(help="last, first, mean, response, last_prompt or span; by default the response, else last."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Most texts a batch; by default by tokens.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="A file: keeps the state of an extraction that is stopped, and continues it."),
    ] = None,
    template: Template = None,
) -> None:
    """Makes a steering vector for each layer from contrast pairs, in one pass over the model."""
    dataset = read_pairs_of(pairs, "train", parse_columns(column))
    chosen = None if layers is None else parse_layers(layers)
    from rotalabs_steer.cli.loading import load_model
    from rotalabs_steer.extraction.extract import check_number_of_pairs, extract_vectors
    from rotalabs_steer.extraction.methods import get_method
    from rotalabs_steer.extraction.readout import check_readout
    from rotalabs_steer.files.formats import check_target

    check_number_of_pairs(dataset)  # all that can be wrong without the model, before it is loaded
    get_method(method)
    if position is not None:
        check_readout(position)
    check_target(output)

    vectors = extract_vectors(
        *load_model(model, parse_template_options(template)),
        dataset,
        chosen,
        method=method,
        token_position=position,
        batch_size=batch_size,
        resume=resume,
    )
    vectors.save(output)
    Console(stderr=True).print(
        f"{len(vectors)} vectors of {vectors.behavior} from {len(dataset)} pairs saved in {output}. No layer or "
        "strength was chosen: rotalabs-steer tune does that.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def parse_layers(text: str) -> list[int]:
    """Layers written as numbers and ranges: `3,10-12` is 3, 10, 11, 12.

    Raises:
        OptionError: the text is not of that form.
    """
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise OptionError(f"--layers {text!r}: {part.strip()!r} is neither a layer nor a range such as 10-12.")
        layers += range(int(first), int(last or first) + 1)
    return layers
