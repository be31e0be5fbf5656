"""Steering vectors and sets of them: data, arithmetic, loading and saving."""

from rotalabs_steer.vectors.steering_vector import SteeringVector
from rotalabs_steer.vectors.vector_set import SteeringVectorSet

__all__ = ["SteeringVector", "SteeringVectorSet"]
