"""Vectors of other tools as steering vectors: each tool's own numbering of layers turned into ours.

| from | its layer number means |
|---|---|
| steering-vectors | the 0-based decoder block whose output is read and changed: ours |
| repeng, EasySteer | the 0-based block too; repeng reads its last block after the final norm |
| rotalabs-steer 1.2 | the 0-based block |
| an index into `output_hidden_states` | one more than the block: `layer_offset=-1` |

steering-vectors, repeng, EasySteer and llama.cpp apply a vector of theirs at all its layers together, so all layers act
of what is read from their objects and from GGUF files. Bare tensors, arrays and dicts do not say how they are applied:
their layers are alternatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rotalabs_steer.arguments import as_integer, plain_value
from rotalabs_steer.errors import OptionError, VectorError
from rotalabs_steer.files.formats import find_format
from rotalabs_steer.files.gguf import ControlVector
from rotalabs_steer.files.other_tools import read_other_tool
from rotalabs_steer.files.reading import check_carried, is_part
from rotalabs_steer.model.configs import find_model_config
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Sequence

_Numbered = TypeVar("_Numbered")
_EMBEDDING = -1
"""The number, in our counting, of what goes into the first decoder layer."""
_RESIDUAL = {"decoder_block", "hidden_states", None}
"""How steering-vectors and EasySteer name the output of a decoder layer; None where an older file does not say."""


def import_vectors(
    source: Any,
    *,
    behavior: str | None = None,
    model_name: str | None = None,
    layers: Sequence[int] | None = None,
    layer_offset: int = 0,
) -> SteeringVectorSet:
    """A set of steering vectors from whatever holds some.

    Args:
        source: a path of a file or folder; a `SteeringVector` of steering-vectors; a `ControlVector` of repeng or
            EasySteer; `{layer: vector}`; a tensor or array `[layers, hidden]` or `[hidden]`.
        behavior: name of the behaviour; by default the file's own, its name, or "imported".
        model_name: the model the vectors were made from; by default what the source says.
        layers: the numbers of the rows of a tensor, which does not say them itself; an error beside any other source.
        layer_offset: added to the source's numbers, where it counts otherwise: −1 for an index into
            `output_hidden_states`, or for files of llama.cpp's own generator. What then has number −1 is the output of
            the embedding, before the first decoder layer, and is left out.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is damaged, unsafe, or of no known kind.
        VectorError: vectors that cannot steer, as zeros cannot, or that belong elsewhere than to a decoder layer's
            output.
        OptionError: `layers` is missing or does not fit, a layer number would be below −1, or the model is known and
            has no such layer.
    """
    offset = as_integer(layer_offset)
    if offset is None:
        raise OptionError(f"layer_offset is {layer_offset!r:.80}; it must be an integer, such as -1.")
    layer_offset = offset
    name, about = behavior, {"imported_from": type(source).__module__.partition(".")[0]}
    as_vector = _copied_vector
    if isinstance(source, str | Path) or hasattr(source, "__fspath__"):
        path = Path(source)
        own = _read_own(path)
        if own is not None:
            return _renamed(_without_layers(own, layers), behavior, model_name, layer_offset)
        source = read_other_tool(path)
        name = behavior or _recorded(source, "behavior") or path.stem
        about = {"imported_from": path.name}
        as_vector = _as_vector
    if isinstance(source, SteeringVector | SteeringVectorSet):
        own = source if isinstance(source, SteeringVectorSet) else SteeringVectorSet(source.behavior, [source])
        return _renamed(_without_layers(own, layers), behavior, model_name, layer_offset)
    rows, method, model, together = _rows(source, layers)
    moved = [(_layer(number, layer_offset), row) for number, row in rows.items()]
    vectors = [
        SteeringVector(name or "imported", layer, as_vector(row), model_name or model, method, about)
        for layer, row in moved
        if layer != _EMBEDDING
    ]
    if not vectors:
        raise VectorError("There are no vectors in it.")
    acting = [vector.layer_index for vector in vectors] if together else None
    return _known_layers(SteeringVectorSet(name or "imported", vectors, acting_layers=acting))


def _read_own(path: Path) -> SteeringVectorSet | None:
    """A set, or a vector saved alone, in a format of this package; None for another tool's file."""
    if path.suffix == ".json" or (path.suffix == ".pt" and path.with_suffix(".json").exists()):
        vector = SteeringVector.load(path)
        return SteeringVectorSet(vector.behavior, [vector])
    return SteeringVectorSet.load(path) if find_format(path) is not None else None


def _rows(source: Any, layers: Sequence[int] | None) -> tuple[dict[Any, Any], str, str, bool]:
    """Vectors by the source's own layer number, the method and the model they were made by, as far as it says, and
    whether all of them act together."""
    target = getattr(source, "layer_type", None) or getattr(source, "component", None)
    if target not in _RESIDUAL:
        raise VectorError(
            f"These vectors were read at {target!r:.80}. Only those of a decoder layer's output can be added to it."
        )
    for attribute, method in (("layer_activations", "steering-vectors"), ("directions", "repeng")):
        rows = getattr(source, attribute, None)
        if isinstance(rows, dict):
            _without_layers(rows, layers)
            known = "imported" if isinstance(source, ControlVector) else str(getattr(source, "method", method))
            return rows, known, _recorded(source, "model_name") or str(getattr(source, "model_type", "")), True
    if isinstance(source, dict):
        return _without_layers(source, layers), "imported", "", False
    return _numbered(source, layers), "imported", "", False


def _without_layers(source: _Numbered, layers: Sequence[int] | None) -> _Numbered:
    """A source that says its layers itself, and is given no others."""
    own: Any = source.layers if isinstance(source, SteeringVectorSet) else source
    if layers is not None and set(plain_value(layers)) != set(own):
        raise OptionError(
            f"layers is {plain_value(layers)!r:.80}, but the source says itself which layers its vectors belong to. "
            "Leave layers out; layer_offset= moves them, and {layer: vector} gives them other layers."
        )
    return source


def _recorded(source: Any, name: str) -> str:
    """What `export_control_vector` wrote into a GGUF file's header, or what its writer hints at."""
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
    """The set, if it has vectors and its model, where it is a known one, has their layers."""
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


def _copied_vector(row: Any) -> torch.Tensor:
    """A vector that what its owner does to the row does not change."""
    return _as_vector(row).clone()


def _as_vector(row: Any) -> torch.Tensor:
    """A vector that has its storage to itself."""
    tensor = _as_tensor(row)
    if tensor.dim() > 1 and tensor.numel() == tensor.shape[-1]:
        tensor = tensor.reshape(-1)  # [1, hidden] and [1, 1, hidden], as some tools store
    return tensor.clone() if is_part(tensor) else tensor


def _as_tensor(value: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value).detach().to("cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise VectorError(
            f"A {type(value).__name__} is not a vector: {str(error)[:200]}. Known are paths, steering-vectors and "
            "repeng objects, {layer: vector}, tensors and arrays."
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
