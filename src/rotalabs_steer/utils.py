"""The import path of rotalabs-steer 1.2 for downloads: `from rotalabs_steer.utils import download_vectors`."""

from rotalabs_steer.files.v1_downloads import download_vectors, list_available_vectors

__all__ = ["download_vectors", "list_available_vectors"]
