"""Steering vectors from contrast pairs."""

from rotalabs_steer.extraction.caa import extract_caa_vector, extract_caa_vectors
from rotalabs_steer.extraction.extract import ActivationStatistics, extract_vectors, read_statistics
from rotalabs_steer.extraction.methods import METHODS, Method, register_method
from rotalabs_steer.extraction.statistics import LayerStatistics

__all__ = [
    "METHODS",
    "ActivationStatistics",
    "LayerStatistics",
    "Method",
    "extract_caa_vector",
    "extract_caa_vectors",
    "extract_vectors",
    "read_statistics",
    "register_method",
]
