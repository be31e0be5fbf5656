"""The tuner: candidate layers, strengths and proof, chosen by what the steered model writes."""

from rotalabs_steer.tuning.options import TuningOptions
from rotalabs_steer.tuning.result import TunedSteering
from rotalabs_steer.tuning.tuner import Tuner, tune

__all__ = ["TunedSteering", "Tuner", "TuningOptions", "tune"]
