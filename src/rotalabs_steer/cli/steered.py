"""A model, what steers it and what that costs: what `generate` and `chat` open, and say first."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.cli.consoles import warning
from rotalabs_steer.cli.layers import name_layers
from rotalabs_steer.cli.loading import LoadedModel, load_model
from rotalabs_steer.cli.named_vectors import load_sets, parse_steer
from rotalabs_steer.cli.strength_costs import StrengthCost, measure_costs
from rotalabs_steer.errors import OptionError, SteeringError
from rotalabs_steer.steering.injection import MultiVectorInjector
from rotalabs_steer.steering.interventions import INTERVENTIONS
from rotalabs_steer.steering.scopes import check_scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from rotalabs_steer.vectors import SteeringVectorSet


@dataclass(frozen=True, eq=False)
class Steered:
    """A model and the sets that steer it.

    Attributes:
        sets: by behaviour; none leave the model as it is.
        injector: not attached yet; None where there are no sets.
        facts: what JSON says of the model and its steering.
    """

    model: LoadedModel
    sets: Mapping[str, SteeringVectorSet]
    injector: MultiVectorInjector | None
    intervention: str
    facts: dict[str, Any]

    def steering(self) -> contextlib.AbstractContextManager[Any]:
        """A block in which the model is steered."""
        return self.injector or contextlib.nullcontext()

    def costs(self, console: Console) -> list[StrengthCost]:
        """What the strengths of raw sets cost now. Warns on the console of those that cost far more than the budget."""
        if self.injector is None:
            return []
        try:
            with console.status("measuring what the strengths cost"):
                costs = measure_costs(self.model, self.sets, self.injector.strengths, self.intervention)  # type: ignore[arg-type]
        except SteeringError as error:  # such a model may answer all the same
            console.print(f"What the strengths cost cannot be measured: {error}")
            return []
        for cost in costs:
            if cost.is_high:
                console.print(warning(str(cost)))
        return costs


def open_steered(
    name: str,
    steer: Sequence[str] | None,
    scope: str,
    intervention: str,
    template: Sequence[str] | None,
    console: Console,
) -> Steered:
    """The model and the vectors that a command line names. The console is told which they are.

    Raises:
        OptionError: an unknown scope or intervention.
        SteeringError, OSError: vectors or model cannot be had. The vectors are read first, because a model takes long.
    """
    check_scope(scope)
    if intervention not in INTERVENTIONS:
        raise OptionError(f"Unknown intervention {intervention!r}. Use one of: {', '.join(INTERVENTIONS)}.")
    sets, strengths = load_sets(parse_steer(steer))
    model = load_model(name, template, console)
    injector = None
    if sets:
        injector = MultiVectorInjector(model.network, sets, strengths, scope, intervention=intervention)
    vectors = [
        {"behavior": behavior, "layers": found.acting_layers, "strength": strengths[behavior]}
        for behavior, found in sets.items()
    ]
    console.print(f"{model}; {_name_vectors(vectors, scope)}")
    steering = {"vectors": vectors, "strengths": strengths, "scope": scope, "intervention": intervention}
    return Steered(model, sets, injector, intervention, model.facts | steering)


def _name_vectors(vectors: Sequence[Mapping[str, Any]], scope: str) -> str:
    """As in `formality: layer 16, strength −1, scope all`."""
    named = []
    for one in vectors:
        strength = f"{one['strength']:g}".replace("-", "\N{MINUS SIGN}")
        named.append(f"{one['behavior']}: {name_layers(one['layers'])}, strength {strength}, scope {scope}")
    return "; ".join(named) or "not steered"
