"""The behaviours that a model is steered by, with their vectors and strengths."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.acting_layers import Vectors, at_layer, warn_not_steering
from rotalabs_steer.steering.injection import MultiVectorInjector
from rotalabs_steer.steering.strengths import check_strength, strengths_by_behavior
from rotalabs_steer.steering.vector_checks import check_vectors
from rotalabs_steer.vector_sources import load_vectors

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import nn

    from rotalabs_steer.steering.scopes import Scope
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

_CONFIG_KEYS = {"vector_path", "vectors", "strength", "layer"}


class SteeredBehaviors:
    """The vector set of each behaviour, and the strength it has unless a call gives another one.

    Args:
        configs: maps each behaviour (any name) to a dict with `vector_path` (of a set or a single vector) or `vectors`
            (a loaded set or vector), `strength` (1.0 by default), and `layer` (the only layer that acts, instead of the
            set's acting layers).

    Raises:
        OptionError: a dict has unknown keys, no vectors, or a strength that is not a finite number.
    """

    def __init__(
        self,
        model: nn.Module,
        configs: Mapping[str, Mapping[str, Any]],
        injection_mode: Scope = "all",
        *,
        check_model: bool = True,
    ) -> None:
        self.model = model
        self.injection_mode = injection_mode
        self.check_model = check_model
        self._sets: dict[str, SteeringVectorSet] = {}
        self._strengths: dict[str, float] = {}
        for behavior, config in configs.items():
            vectors, layer, strength = _read_config(behavior, config)
            self.add(behavior, vectors, strength, layer)

    @property
    def strengths(self) -> dict[str, float]:
        """The present strength of each behaviour."""
        return dict(self._strengths)

    def add(
        self,
        behavior: str,
        vectors: str | os.PathLike[str] | Vectors,
        strength: float = 1.0,
        layer: int | None = None,
    ) -> None:
        """Adds a behaviour, or replaces its vectors. Raises an error if the vectors do not fit the model."""
        loaded = at_layer(load_vectors(vectors), layer)
        check_vectors(self.model, loaded.acting, check_model=self.check_model)
        number = _one_number(strength)
        warn_not_steering([loaded])
        self._sets[behavior] = loaded
        self._strengths[behavior] = number

    def set_strength(self, behavior: str, strength: float) -> None:
        """Changes a strength for calls that begin later. Raises KeyError for an unknown behaviour."""
        self.get_strength(behavior)
        self._strengths[behavior] = _one_number(strength)

    def get_strength(self, behavior: str) -> float:
        """The present strength of a behaviour. Raises KeyError for an unknown one."""
        if behavior not in self._strengths:
            raise KeyError(f"No vectors for behaviour {behavior!r}; there are {list(self._sets)}.")
        return self._strengths[behavior]

    def merged(self, *overrides: Mapping[str, float] | None) -> dict[str, float]:
        """The strengths of one call: those of the last override that has them, else the present ones.

        Raises:
            OptionError: an override is not a mapping, a behaviour has no vectors, or a strength is not a finite number.
        """
        strengths = self.strengths
        for override in overrides:
            checked = strengths_by_behavior(self._sets, override)
            strengths |= {name: _one_number(checked[name]) for name in override or ()}
        return strengths

    def injector(self, rows: Sequence[Mapping[str, float]]) -> MultiVectorInjector | None:
        """The injector that steers each row of a batch by its own strengths, or None if there are no behaviours."""
        if not self._sets:
            return None
        strengths: dict[str, float | list[float]] = {}
        for behavior in rows[0]:
            column = [row[behavior] for row in rows]
            strengths[behavior] = column[0] if len(set(column)) == 1 else column
        sets = {behavior: self._sets[behavior] for behavior in rows[0]}
        return MultiVectorInjector(self.model, sets, strengths, self.injection_mode, check_model=self.check_model)

    def fingerprint(self) -> dict[str, str]:
        """The layer and a digest of each acting vector, by behaviour. Caches need it to tell vectors apart."""
        return {
            behavior: ", ".join(f"layer {vector.layer_index} of {_digest(vector)}" for vector in vectors.acting)
            for behavior, vectors in self._sets.items()
        }


def _digest(vector: SteeringVector) -> str:
    return hashlib.sha256(vector.vector.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]


def _read_config(behavior: str, config: Mapping[str, Any]) -> tuple[Any, int | None, float]:
    unknown = set(config) - _CONFIG_KEYS
    if unknown:
        raise OptionError(
            f"The steering config of {behavior!r} has the unknown keys {sorted(unknown)}. Use vector_path or vectors, "
            "strength and layer."
        )
    sources = [config[key] for key in ("vector_path", "vectors") if config.get(key) is not None]
    if len(sources) != 1:
        raise OptionError(
            f"The steering config of {behavior!r} has {len(sources)} sources of vectors. Give either "
            "vector_path or vectors."
        )
    return sources[0], config.get("layer"), config.get("strength", 1.0)


def _one_number(strength: float | Sequence[float]) -> float:
    checked = check_strength(strength)
    if isinstance(checked, tuple):
        raise OptionError(f"Strength {strength!r} is a list; each call takes one number a behaviour.")
    return checked
