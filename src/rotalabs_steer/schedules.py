"""An older import path of `rotalabs_steer.steering`'s schedules, kept so that programs go on working."""

from rotalabs_steer.steering.schedules import LinearDecay, StopAfter

__all__ = ["LinearDecay", "StopAfter"]
