"""Steering folded into weights: an ordinary checkpoint that every engine serves steered, at no cost."""

from rotalabs_steer.baking.bake import bake

__all__ = ["bake"]
