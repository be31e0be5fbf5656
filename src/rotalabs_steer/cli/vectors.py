"""The verbs of `rotalabs-steer vectors`: show, verify, convert, push and pull vector sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from rotalabs_steer.cli.consoles import notes, output, print_json
from rotalabs_steer.cli.layers import layers_of, name_layers
from rotalabs_steer.cli.options import Json, Quiet
from rotalabs_steer.errors import OptionError, SteeringError

if TYPE_CHECKING:
    from rotalabs_steer.vectors import SteeringVectorSet

app = typer.Typer(name="vectors", help="Show, verify, convert and share vectors.", no_args_is_help=True)

PathOrId = Annotated[
    str,
    typer.Argument(metavar="PATH_OR_ID", help="A file, a folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hub."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")]
Subfolder = Annotated[str, typer.Option(help="Folder in the repository.")]
Token = Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Access token; by default that of `hf auth login`.")]
Layer = Annotated[
    list[int] | None,
    typer.Option("--layer", help="Layer of a row, for files that do not say it. Repeat it once for each row."),
]
LayerOffset = Annotated[int, typer.Option(help="Added to the file's layer numbers, where it counts otherwise.")]


@app.command()
def show(
    source: PathOrId,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    layer: Layer = None,
    as_json: Json = False,
) -> None:
    """Show what a vector set holds. That is behaviour, model, layers, norms, and what tuning found."""
    vectors = _load(source, revision, subfolder, token, layer)
    facts = _facts(vectors)
    if as_json:
        print_json(facts)
        return
    console = output()
    console.print(f"[bold]{escape(vectors.behavior)}[/]  {escape(vectors.model_name or 'no model recorded')}")
    for name, value in facts["metadata"].items():
        console.print(f"[cyan]{escape(name)}:[/] {escape(json.dumps(value))}", highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    columns = ("layer", "dim", "norm", "dtype", "method", "read at")
    for column in columns:
        table.add_column(column, justify="left" if column in {"dtype", "method", "read at"} else "right")
    for row in facts["vectors"]:
        mark = "*" if row["layer"] in facts["acting_layers"] else ""
        cells = [mark + str(row["layer"]), row["dim"], f"{row['norm']:.4g}", row["dtype"], row["method"]]
        table.add_row(*(escape(str(cell)) for cell in cells), escape(str(row["token_position"] or "")))
    console.print(table)
    console.print(_about_acting(vectors))


@app.command()
def verify(
    sources: Annotated[list[str], typer.Argument(metavar="PATH_OR_ID...", help="Files, folders or repositories.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or Hugging Face id: also check that the vectors fit it.")
    ] = None,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Check that sets are sound. Exit code 1 if one of them is not."""
    found: list[dict[str, Any]] = []
    for source in sources:
        try:
            vectors = _load(source, revision, subfolder, token)
            if model is not None:
                _check_fits(vectors, model)
            found.append({"source": source, "sound": True, "behavior": vectors.behavior, "layers": vectors.layers})
        except (SteeringError, OSError) as error:
            found.append({"source": source, "sound": False, "reason": str(error)})
    if as_json:
        print_json(found)
    else:
        console = output()
        for row in found:
            said = f"{row['behavior']}, {len(row['layers'])} vectors" if row["sound"] else row["reason"]
            mark = "[green]sound[/]  " if row["sound"] else "[bold red]unsound[/]"
            console.print(f"{mark} {escape(row['source'])}: {escape(said)}", highlight=False, soft_wrap=True)
    if not all(row["sound"] for row in found):
        sys.exit(1)


@app.command()
def convert(
    source: PathOrId,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.")],
    to: Annotated[str | None, typer.Option(help="Format; by default what the name of OUT says, else a folder.")] = None,
    behavior: Annotated[str | None, typer.Option(help="Name of the behaviour, where the file has none.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Model the vectors were made from, if not recorded.")] = None,
    layer: Layer = None,
    layer_offset: LayerOffset = 0,
    acting_layers: Annotated[
        list[str] | None,
        typer.Option(
            "--acting-layers",
            "--acting-layer",
            metavar="LAYERS",
            help="Layers that act together, such as 14 or 8-10,14; by default what the source says.",
        ),
    ] = None,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write vectors of any tool in another format. `--to pretrained` writes a folder to share."""
    vectors = _load(source, revision, subfolder, token, layer, behavior, model_name, layer_offset)
    acting = layers_of(acting_layers)
    if acting is not None:
        vectors = vectors.with_acting_layers(acting)
    _write(vectors, target, to, as_json, quiet)


@app.command()
def push(
    source: PathOrId,
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; made if it does not exist.")],
    private: Annotated[bool | None, typer.Option(help="Whether a repository that is made is private.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Upload a set with a model card to the Hub."""
    done = _load(source, token=token).push_to_hub(
        repo_id,
        private=private,
        commit_message=message,
        create_pr=create_pr,
        revision=revision,
        subfolder=subfolder,
        token=token,
    )
    place = done.pr_url or done.commit_url
    if as_json:
        print_json({"repository": repo_id, "url": place})
    else:
        typer.echo(place)


@app.command()
def pull(
    repo_id: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face Hub; OWNER/NAME@REVISION, too.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.")],
    to: Annotated[str | None, typer.Option(help="Format; by default what the name of OUT says, else a folder.")] = None,
    revision: Revision = None,
    subfolder: Subfolder = "",
    token: Token = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a set, check it and write it."""
    _write(_load(repo_id, revision, subfolder, token), target, to, as_json, quiet)


def _load(
    source: str,
    revision: str | None = None,
    subfolder: str = "",
    token: str | None = None,
    layers: list[int] | None = None,
    behavior: str | None = None,
    model_name: str | None = None,
    layer_offset: int = 0,
) -> SteeringVectorSet:
    """A set from a path in any format, or from the Hub where there is nothing at that path."""
    from rotalabs_steer.files.hub import find_vectors
    from rotalabs_steer.importing import import_vectors

    path = find_vectors(source, revision=revision, subfolder=subfolder, token=token)
    single = path if path.exists() else path.with_name(f"{path.name}.json")
    return import_vectors(
        single, behavior=behavior, model_name=model_name, layers=layers or None, layer_offset=layer_offset
    )


def _facts(vectors: SteeringVectorSet) -> dict[str, Any]:
    return {
        "behavior": vectors.behavior,
        "model_name": vectors.model_name,
        "metadata": vectors.metadata,
        "acting_layers": vectors.acting_layers if len(vectors) else [],
        "vectors": [
            {
                "layer": vector.layer_index,
                "dim": vector.dim,
                "norm": vector.norm,
                "dtype": str(vector.vector.dtype).removeprefix("torch."),
                "method": vector.extraction_method,
                "token_position": vector.metadata.get("token_position"),
                "metadata": vector.metadata,
            }
            for vector in vectors
        ],
    }


def _about_acting(vectors: SteeringVectorSet) -> str:
    """What the mark on acting layers means."""
    if not len(vectors):
        return "The set is empty."
    if len(vectors.acting_layers) > 1:
        return "* layers that act together"
    if vectors.acting_layers == [vectors.chosen_layer]:
        return "* the layer that acts: tuning chose it"
    return "* the layer that acts"


def _check_fits(vectors: SteeringVectorSet, model: str) -> None:
    from transformers import AutoConfig

    from rotalabs_steer.model.loading import resolve_model

    config = AutoConfig.from_pretrained(resolve_model(model)).get_text_config(decoder=True)
    layers, hidden = config.num_hidden_layers, config.hidden_size
    for vector in vectors:
        if vector.dim != hidden or vector.layer_index >= layers:
            raise OptionError(
                f"The vector of layer {vector.layer_index} has {vector.dim} numbers; {model} has {layers} layers, "
                f"0 to {layers - 1}, of {hidden}."
            )


def _write(vectors: SteeringVectorSet, target: Path, to: str | None, as_json: bool, quiet: bool) -> None:
    console = notes(quiet)
    written = vectors.layers
    if to == "pretrained":
        vectors.save_pretrained(target)
    elif to is None and target.suffix == ".gguf":
        from rotalabs_steer.engines.control_vectors import export_control_vector

        export_control_vector(vectors, target)
        written = vectors.acting_layers
        if len(written) < len(vectors):
            console.print(
                f"The other layers of {vectors.layers} do not act in this set, and llama.cpp would apply them all, so "
                "they are left out. --acting-layers says which layers act."
            )
    else:
        vectors.save(target, to)
    number = f"{len(written)} vector{'' if len(written) == 1 else 's'}"
    console.print(f"{number} of {vectors.behavior!r} ({name_layers(written)}) written to {target}")
    if as_json:
        print_json({"behavior": vectors.behavior, "layers": written, "target": str(target)})
