"""Strengths: the multipliers of stored vectors.

- Strength 0 is bit for bit the unsteered model.
- Strength 1 is the vector as it is stored. Interventions other than addition do in full what their names say.
- Negative strengths steer the other way.

Tuning stores a calibrated vector: strengths 1 and −1 are both safe, and one of them is the largest that stays in the
coherence budget and leaves the model's answers whole. Extraction stores a raw vector, whose length depends on model and
layer, so its strengths can be compared with those of no other vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rotalabs_steer.arguments import as_real, plain_value
from rotalabs_steer.errors import OptionError

Strength = float | tuple[float, ...]
"""One number for all rows of a batch, or one for each row."""


def check_strength(strength: float | Sequence[float]) -> Strength:
    """The strength as a float, or as a tuple with one float for each row.

    Args:
        strength: a number or a list of numbers, of Python, numpy or torch.

    Raises:
        OptionError: it is not made of finite numbers.
    """
    given = plain_value(strength)
    rows = given if isinstance(given, (list, tuple)) else (given,)
    if not rows:
        raise OptionError("The list of strengths is empty: give one for each row of the batch.")
    numbers = [as_real(row) for row in rows]
    checked = tuple(number for number in numbers if number is not None)
    if len(checked) < len(rows):
        raise OptionError(
            f"Strength {rows[numbers.index(None)]!r} is not a finite number. 0 is unsteered, 1 the vector as stored."
        )
    return checked if given is rows else checked[0]


def strengths_by_behavior(
    behaviors: Iterable[str], strengths: Mapping[str, float | Sequence[float]] | None
) -> dict[str, Strength]:
    """The strength of each behaviour: the one given for it, else 1.0.

    Raises:
        OptionError: a strength is not made of finite numbers, or there are no vectors for its behaviour.
    """
    known: dict[str, Strength] = dict.fromkeys(behaviors, 1.0)
    if not isinstance(strengths, Mapping | None):
        raise OptionError(
            f"Strengths are given by behaviour, as in {dict.fromkeys(known, 0.5)}, got {strengths!r:.80}."
        )
    for behavior, strength in (strengths or {}).items():
        if behavior not in known:
            raise OptionError(f"Strength for {behavior!r}, but there are vectors for {list(known)} only.")
        known[behavior] = check_strength(strength)
    return known
