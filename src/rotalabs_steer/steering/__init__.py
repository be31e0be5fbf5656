"""Everything that a user steers with."""

from typing import TYPE_CHECKING

from rotalabs_steer.lazy_names import lazy_names

if TYPE_CHECKING:
    from rotalabs_steer.steering.acting_layers import NotSteeringWarning
    from rotalabs_steer.steering.active_steering import ActiveSteering, steering_of
    from rotalabs_steer.steering.by_name import steer
    from rotalabs_steer.steering.conditions import Condition, FittedCondition, fit_condition
    from rotalabs_steer.steering.injection import ActivationInjector, MultiVectorInjector, SteeringOptions
    from rotalabs_steer.steering.interventions import Ablate, Add, AddKeepingNorm, Clamp, Rotate
    from rotalabs_steer.steering.plain_model import unsteered
    from rotalabs_steer.steering.schedules import LinearDecay, StopAfter
    from rotalabs_steer.steering.scopes import AfterMarker, AfterText, TokenRange
    from rotalabs_steer.steering.steered_model import SteeredModel

__all__ = [
    "Ablate",
    "ActivationInjector",
    "ActiveSteering",
    "Add",
    "AddKeepingNorm",
    "AfterMarker",
    "AfterText",
    "Clamp",
    "Condition",
    "FittedCondition",
    "LinearDecay",
    "MultiVectorInjector",
    "NotSteeringWarning",
    "Rotate",
    "SteeredModel",
    "SteeringOptions",
    "StopAfter",
    "TokenRange",
    "fit_condition",
    "steer",
    "steering_of",
    "unsteered",
]

_HOMES = {
    "acting_layers": ("NotSteeringWarning",),
    "active_steering": ("ActiveSteering", "steering_of"),
    "plain_model": ("unsteered",),
    "by_name": ("steer",),
    "conditions": ("Condition", "FittedCondition", "fit_condition"),
    "injection": ("ActivationInjector", "MultiVectorInjector", "SteeringOptions"),
    "interventions": ("Ablate", "Add", "AddKeepingNorm", "Clamp", "Rotate"),
    "scopes": ("AfterMarker", "AfterText", "TokenRange"),
    "schedules": ("LinearDecay", "StopAfter"),
    "steered_model": ("SteeredModel",),
}

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
