"""A vector set as a model repository: `steering_config.json`, `vectors.safetensors` and a model card.

The configuration is the commit point: it names the vectors by SHA-256 (see `two_file_commit`), so a folder is never
read as a mixture of two saves. The rest of it repeats the header of the vectors, for people and other programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.atomic import locked, write_atomically
from rotalabs_steer.files.model_card import CARD_FILE, GENERATED, model_card
from rotalabs_steer.files.names import shown_model_name
from rotalabs_steer.files.reading import MAX_JSON_BYTES, l2_norm, read_bytes
from rotalabs_steer.files.safetensors_file import parse_safetensors_set, safetensors_set_bytes
from rotalabs_steer.files.schema import STEERING, StoredSet, json_bytes, read_document, stamp
from rotalabs_steer.files.two_file_commit import (
    digest,
    keep_old_data,
    read_by_digest,
    read_while_written,
    remove_old_data,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG_FILE = "steering_config.json"
VECTORS_FILE = "vectors.safetensors"

_SET_FACTS = ("chosen_layer", "calibration", "effect", "answers")
_VECTOR_FACTS = ("token_position", "component", "num_pairs", "dataset_sha256", "fingerprint")


def pretrained_files(stored: StoredSet, repo_id: str | None = None) -> dict[str, bytes]:
    """The content of the three files, by name, in the order in which they are to be written.

    Raises:
        FileFormatError: the set is empty, or its metadata cannot be written as JSON.
    """
    if not stored.vectors:
        raise FileFormatError("The vector set is empty: there is nothing to save.")
    stored = _without_paths(stored)
    vectors = safetensors_set_bytes(stored)
    config = json_bytes(_config(stored) | {"vectors_sha256": digest(vectors)})
    return {VECTORS_FILE: vectors, CARD_FILE: model_card(stored, repo_id).encode(), CONFIG_FILE: config}


def _without_paths(stored: StoredSet) -> StoredSet:
    """The set with `shown_model_name` in place of the model's path."""

    def shown(facts: Mapping[str, Any]) -> dict[str, Any]:
        model = facts.get("model_name")
        return {**facts, "model_name": shown_model_name(model)} if isinstance(model, str) else dict(facts)

    return stored._replace(
        metadata=shown(stored.metadata),
        vectors={n: (shown(about), tensor) for n, (about, tensor) in stored.vectors.items()},
    )


def _config(stored: StoredSet) -> dict[str, Any]:
    """What other programs need to know about a set: model, layers, how the vectors are applied, what tuning found."""
    about = next(facts for facts, _ in stored.vectors.values())
    vectors = {n: tensor for n, (_, tensor) in sorted(stored.vectors.items())}
    facts, known = stored.metadata.get("metadata", {}), about.get("metadata", {})
    return stamp({
        "library_name": "rotalabs-steer",
        "behavior": stored.metadata.get("behavior"),
        "base_model_name_or_path": stored.metadata.get("model_name"),
        "extraction_method": about.get("extraction_method"),
        "layers": list(vectors),
        "acting_layers": list(stored.acting_layers),
        "hidden_size": len(next(iter(vectors.values()))),
        "norms": {str(n): l2_norm(tensor) for n, tensor in vectors.items()},
        "dtype": about.get("dtype"),
        "steering": dict(STEERING),
        **{name: facts[name] for name in _SET_FACTS if name in facts},
        **{name: known[name] for name in _VECTOR_FACTS if name in known},
    })  # fmt: skip


def save_pretrained_folder(directory: Path, stored: StoredSet) -> None:
    """Writes the three files, except for the card if a person has written one."""
    files = pretrained_files(stored)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        keep_old_data(directory / VECTORS_FILE)
        for name, content in files.items():
            if name != CARD_FILE or _may_replace_card(directory / CARD_FILE):
                write_atomically(directory / name, content)
        remove_old_data(directory, set(files))


def load_pretrained_folder(directory: Path) -> StoredSet:
    """Reads such a folder. Raises as `read_set`."""
    return read_while_written(lambda: _load_once(directory))


def _may_replace_card(path: Path) -> bool:
    return not path.exists() or GENERATED.encode() in read_bytes(path, MAX_JSON_BYTES)


def _load_once(directory: Path) -> StoredSet:
    path = directory / CONFIG_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{directory} has no {CONFIG_FILE}, so save_pretrained did not write it. "
            "Use SteeringVectorSet.load for sets that save wrote, import_vectors for files of other tools."
        )
    vectors, sha256 = directory / VECTORS_FILE, read_document(path).get("vectors_sha256")
    return parse_safetensors_set(read_by_digest(vectors, sha256), vectors)
