"""Steering vectors from contrast pairs."""

from rotalabs_steer.extraction.caa import extract_caa_vector, extract_caa_vectors

__all__ = ["extract_caa_vector", "extract_caa_vectors"]
