"""Folds steering into the weights of a model. The result is an ordinary checkpoint for every engine."""

from rotalabs_steer.baking.bake import bake

__all__ = ["bake"]
