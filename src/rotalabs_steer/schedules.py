"""An older import path of the schedules in `rotalabs_steer.steering`, kept for programs that use it."""

from rotalabs_steer.steering.schedules import LinearDecay, StopAfter

__all__ = ["LinearDecay", "StopAfter"]
