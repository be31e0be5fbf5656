"""Converts steering vectors to the GGUF control vectors of llama.cpp, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rotalabs_steer.errors import OptionError, VectorError
from rotalabs_steer.files.gguf import ControlVector, read_control_vector, write_control_vector
from rotalabs_steer.files.names import shown_model_name
from rotalabs_steer.files.reading import check_carried
from rotalabs_steer.steering.acting_layers import acting_vectors
from rotalabs_steer.steering.interventions import Add
from rotalabs_steer.steering.plans import PlanItem, constant_additions
from rotalabs_steer.steering.strengths import check_strength
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from rotalabs_steer.steering.acting_layers import Vectors

_STRENGTH = "rotalabs_steer.strength"
_FOLDED = "rotalabs_steer.strength_folded"
_BEHAVIOR = "rotalabs_steer.behavior"
_MODEL = "rotalabs_steer.model_name"


def export_control_vector(
    vectors: Vectors | Iterable[Vectors],
    path: str | os.PathLike[str],
    strength: float = 1.0,
    *,
    fold_strength: bool = True,
) -> None:
    """Writes vectors to one GGUF control vector, with which llama.cpp does what `ActivationInjector` does.

    Args:
        vectors: any number of vectors, or vector sets. A set is written at its `acting_layers`, because llama.cpp
            applies everything in a file; `list(vector_set)` gives all its vectors. Vectors of one layer add up.
        strength: multiplier of every vector.
        fold_strength: True writes `strength · vector`, for `--control-vector FILE`. False writes the vectors as they
            are, for `--control-vector-scaled FILE:STRENGTH`, and records the strength in the header. The header's
            `rotalabs_steer.strength_folded` says which of the two was done.

    Raises:
        LayerError: a vector is of layer 0, which llama.cpp cannot steer.
        VectorError: there is no vector, their lengths differ, or one is zero or infinite at this strength.
        OptionError: the strength is not one finite number, or it is 0 and folded, so that the file would do nothing.
    """
    given = acting_vectors(vectors)
    if len({vector.dim for vector in given}) > 1:
        raise VectorError(f"The vectors have {sorted({v.dim for v in given})} numbers, so they are not of one model.")
    factor = check_strength(strength)
    if not isinstance(factor, float):
        raise OptionError(f"A control vector has one strength for all rows, not {strength!r}.")
    if fold_strength and factor == 0.0:
        raise OptionError("With strength 0 folded into it, the file would do nothing. Use another strength.")
    items = [
        PlanItem(vector.layer_index, Add(vector.vector), "all", factor if fold_strength else 1.0) for vector in given
    ]
    hint = str((given[0].fingerprint or {}).get("model_type", ""))
    metadata: dict[str, str | int | float | bool] = {
        _BEHAVIOR: ", ".join(dict.fromkeys(vector.behavior for vector in given)),
        _MODEL: shown_model_name(given[0].model_name),
        _STRENGTH: factor,
        _FOLDED: fold_strength,
    }
    additions = constant_additions(items, "A control vector")
    for layer, addition in additions.items():
        check_carried(addition, torch.float32, f"What the control vector would add at layer {layer}")
    write_control_vector(Path(path), ControlVector(additions, hint, metadata))


def import_control_vector(
    path: str | os.PathLike[str], layer_offset: int = 0, behavior: str | None = None
) -> SteeringVectorSet:
    """The vectors of a GGUF control vector. Strength 1 has the effect of `--control-vector`.

    All layers of the set act, as they do in llama.cpp.

    Args:
        layer_offset: added to each layer's number. Use -1 for the files of llama.cpp's own generator, whose layer
            numbers are one higher than those of the layers it measured.
        behavior: the name of the set. By default it is the name that `export_control_vector` recorded, or else the
            file's name.

    Raises:
        FileNotFoundError, FileFormatError: there is no such file, or it is damaged, unsafe or not a control vector.
        VectorError: a vector is zero.
    """
    stored = read_control_vector(Path(path), layer_offset)
    for layer, tensor in stored.directions.items():
        check_carried(tensor, tensor.dtype, f"The vector of layer {layer}")
    name = behavior or str(stored.metadata.get(_BEHAVIOR) or Path(path).stem)
    model = str(stored.metadata.get(_MODEL) or stored.model_hint or "unknown")
    about = {"source": "gguf", "model_hint": stored.model_hint, "gguf": dict(stored.metadata)}
    return SteeringVectorSet(
        name,
        [SteeringVector(name, layer, tensor, model, "imported", about) for layer, tensor in stored.directions.items()],
        acting_layers=stored.directions,
    )
