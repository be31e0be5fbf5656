"""Vectors of other tools as steering vectors, with each tool's numbering of layers turned into ours.

| from | its layer number means |
|---|---|
| steering-vectors | the 0-based decoder block whose output is read and changed, which is our number |
| repeng, EasySteer | the 0-based block too; repeng reads its last block after the final norm |
| rotalabs-steer 1.2 | the 0-based block |
| an index into `output_hidden_states` | one more than the block: `layer_offset=-1` |

steering-vectors, repeng, EasySteer and llama.cpp apply all layers of a vector together, so all layers act in the sets
made from their objects and from GGUF files. Bare tensors, arrays and dicts do not say how they are applied, so their
layers are alternatives.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.arguments import as_integer, plain_value
from rotalabs_steer.errors import OptionError, VectorError
from rotalabs_steer.files.formats import is_set
from rotalabs_steer.files.gguf import ControlVector
from rotalabs_steer.files.other_tools import read_other_tool
from rotalabs_steer.files.reading import check_carried, is_part
from rotalabs_steer.model.configs import find_model_config
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Sequence

_EMBEDDING = -1
"""Our number for the output of the embedding, which is the input of the first decoder layer."""
_RESIDUAL = {"decoder_block", "hidden_states", None}
"""The names of a decoder layer's output in steering-vectors and EasySteer. Older files have none."""


def import_vectors(
    source: Any,
    *,
    behavior: str | None = None,
    model_name: str | None = None,
    layers: Sequence[int] | None = None,
    layer_offset: int = 0,
) -> SteeringVectorSet:
    """Makes a set of steering vectors from a file or an object of this package or another tool.

    Args:
        source: a path of a file or folder; a `SteeringVector` of steering-vectors; a `ControlVector` of repeng or
            EasySteer; `{layer: vector}`; a tensor or array `[layers, hidden]` or `[hidden]`.
        behavior: name of the behaviour; by default the file's own, its name, or "imported".
        model_name: the model the vectors were made from; by default the one that the source names.
        layers: the layer of each row of a tensor or array. Any other source gives its layers itself.
        layer_offset: added to the source's layer numbers: −1 for an index into `output_hidden_states`, and for files of
            llama.cpp's own generator. A vector that then has number −1 belongs to the output of the embedding and is
            left out.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, unsafe, or of an unknown kind.
        VectorError: a vector cannot steer (for example, it is zero), or does not belong to a decoder layer's output.
        OptionError: `layers` is missing or does not fit, a layer number would be below −1, or the model is a known one
            that does not have such a layer.
    """
    offset = as_integer(layer_offset)
    if offset is None:
        raise OptionError(f"layer_offset is {layer_offset!r:.80}; it must be an integer, such as -1.")
    origin = type(source).__module__.partition(".")[0]
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    own = _own_set(source if path is None else path)
    if own is not None:
        _check_same_layers(own.layers, layers)
        return _renamed(own, behavior, model_name, offset)
    name = behavior or "imported"
    if path is not None:
        origin, source = path.name, read_other_tool(path)
        name = behavior or _recorded(source, "behavior") or path.stem
    rows, method, model, together = _rows(source, layers)
    vectors = []
    for number, row in rows.items():
        layer = _layer(number, offset)
        if layer != _EMBEDDING:
            # The rows of an object belong to the caller, who may change them later.
            vector = _as_vector(row) if path is not None else _as_vector(row).clone()
            facts = {"imported_from": origin}
            vectors.append(SteeringVector(name, layer, vector, model_name or model, method, facts))
    acting = [vector.layer_index for vector in vectors] if together and vectors else None
    return _known_layers(SteeringVectorSet(name, vectors, acting_layers=acting))


def _own_set(source: Any) -> SteeringVectorSet | None:
    """The set at a path or in an object of this package, where a vector is a set of one; None for other tools'."""
    if isinstance(source, Path):
        if source.suffix == ".json" or (source.suffix == ".pt" and source.with_suffix(".json").exists()):
            source = SteeringVector.load(source)
        elif source.is_dir() or is_set(source):
            source = SteeringVectorSet.load(source)
    if isinstance(source, SteeringVector):
        return SteeringVectorSet(source.behavior, [source])
    return source if isinstance(source, SteeringVectorSet) else None


def _rows(source: Any, layers: Sequence[int] | None) -> tuple[dict[Any, Any], str, str, bool]:
    """Vectors by the source's own layer number, their method and model (may be empty), and whether all act together."""
    target = getattr(source, "layer_type", None) or getattr(source, "component", None)
    if target not in _RESIDUAL:
        raise VectorError(
            f"These vectors were read at {target!r:.80}. Only those of a decoder layer's output can be added to it."
        )
    for attribute, method in (("layer_activations", "steering-vectors"), ("directions", "repeng")):
        rows = getattr(source, attribute, None)
        if isinstance(rows, dict):
            _check_same_layers(rows, layers)
            known = "imported" if isinstance(source, ControlVector) else str(getattr(source, "method", method))
            return rows, known, _recorded(source, "model_name") or str(getattr(source, "model_type", "")), True
    if isinstance(source, dict):
        _check_same_layers(source, layers)
        return source, "imported", "", False
    return _numbered(source, layers), "imported", "", False


def _check_same_layers(own: Iterable[Any], layers: Sequence[int] | None) -> None:
    """Refuses layers other than those that the source itself gives."""
    if layers is not None and set(plain_value(layers)) != set(own):
        raise OptionError(
            f"layers is {plain_value(layers)!r:.80}, but the source says itself which layers its vectors belong to. "
            "Leave layers out; layer_offset= moves them, and {layer: vector} gives them other layers."
        )


def _recorded(source: Any, name: str) -> str:
    """A fact that `export_control_vector` wrote into a GGUF file's header. For a model, another tool's hint will do."""
    if not isinstance(source, ControlVector):
        return ""
    hint = source.model_hint if name == "model_name" else ""
    return str(source.metadata.get(f"rotalabs_steer.{name}", hint))


def _numbered(source: Any, layers: Sequence[int] | None) -> dict[Any, Any]:
    table = _as_tensor(source)
    table = table.unsqueeze(0) if table.dim() == 1 else table
    if table.dim() != 2:
        raise VectorError(f"Vectors have shape [hidden] or [layers, hidden], got {list(table.shape)}.")
    given = plain_value(layers)
    numbers = [] if given is None else [_number(n) for n in (given if isinstance(given, Iterable) else [given])]
    if len(numbers) != len(table):
        raise OptionError(
            f"The tensor has {len(table)} rows and does not say which layers they belong to: pass layers=, "
            f"{len(table)} numbers{'' if layers is None else f', not {len(numbers)}'}."
        )
    if len(set(numbers)) < len(numbers):
        raise OptionError(f"layers names a layer twice: {numbers}.")
    return dict(zip(numbers, table, strict=True))


def _number(given: Any) -> int:
    number = as_integer(given)
    if number is None:
        raise OptionError(f"{given!r:.80} is not a layer number.")
    return number


def _layer(given: Any, offset: int) -> int:
    number = _number(given)
    if number + offset < _EMBEDDING:
        raise OptionError(
            f"Layer {number} of the source with layer_offset {offset} is before the first decoder layer, 0."
        )
    return number + offset


def _known_layers(vectors: SteeringVectorSet) -> SteeringVectorSet:
    """The set, if it has vectors, each does something, and a model that is known has all of its layers."""
    if not vectors.layers:
        raise VectorError("There are no vectors in it.")
    known = find_model_config(vectors.model_name or "")
    if known is not None and vectors.layers[-1] >= known.num_layers:
        raise OptionError(
            f"There is a vector for layer {vectors.layers[-1]}, but {known.name} has {known.num_layers} layers, 0 to "
            f"{known.num_layers - 1}. If the vectors are rows of output_hidden_states, pass layer_offset=-1."
        )
    return _without_zeros(vectors)


def _without_zeros(vectors: SteeringVectorSet) -> SteeringVectorSet:
    """The set, if each of its vectors does something."""
    for vector in vectors:
        check_carried(vector.vector, vector.vector.dtype, f"The vector of layer {vector.layer_index}")
    return vectors


def _as_vector(row: Any) -> torch.Tensor:
    """A row as a tensor `[hidden]` that does not share its storage with other rows."""
    tensor = _as_tensor(row)
    if tensor.dim() > 1 and tensor.numel() == tensor.shape[-1]:
        tensor = tensor.reshape(-1)  # some tools store [1, hidden] or [1, 1, hidden]
    return tensor.clone() if is_part(tensor) else tensor


def _as_tensor(value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value).detach().to("cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise VectorError(
            f"A {type(value).__name__} is not a vector: {str(error)[:200]}. Give a path, an object of steering-vectors "
            "or repeng, {layer: vector}, a tensor or an array."
        ) from error


def _acts_at_embedding(role: str, layer_offset: int) -> OptionError:
    return OptionError(
        f"Layer 0 is {role} layer of the set, and with layer_offset {layer_offset} it would be the output of the "
        "embedding, before the first decoder layer, which cannot be steered. Choose another offset, or layers that "
        "stay: vector_set.with_acting_layers([...])."
    )


def _renamed(
    vectors: SteeringVectorSet, behavior: str | None, model_name: str | None, layer_offset: int
) -> SteeringVectorSet:
    """A set of this package with other names and layer numbers, which its metadata follows."""
    if behavior is None and model_name is None and layer_offset == 0:
        return _without_zeros(vectors)
    name, metadata = behavior or vectors.behavior, dict(vectors.metadata)
    if layer_offset and vectors.chosen_layer is not None:
        metadata["chosen_layer"] = _layer(vectors.chosen_layer, layer_offset)
        if metadata["chosen_layer"] == _EMBEDDING:
            raise _acts_at_embedding("the chosen", layer_offset)
    if metadata.get("acting_layers") is not None:
        offset = [_layer(layer, layer_offset) for layer in vectors.acting_layers]
        if _EMBEDDING in offset:
            raise _acts_at_embedding("an acting", layer_offset)
        metadata["acting_layers"] = offset
    moved = [
        dataclasses.replace(vector, behavior=name, layer_index=layer, model_name=model_name or vector.model_name)
        for vector in vectors
        if (layer := _layer(vector.layer_index, layer_offset)) != _EMBEDDING
    ]
    return _known_layers(SteeringVectorSet(name, moved, metadata))
