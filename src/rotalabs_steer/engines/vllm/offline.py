"""Reloading the vectors of a `vllm.LLM`."""

from __future__ import annotations

from typing import Any


def reload_vectors(llm: Any) -> None:
    """Reads the folder of vectors again. Requests that are under way keep the vectors they began with.

    Raises:
        LayerError: a set acts at a layer that was not prepared when the engine started. Nothing has changed.
        FileFormatError, VectorError, ModelMismatchError: a set is damaged or does not fit. Nothing has changed.
    """
    frontend = llm.llm_engine.input_processor.steering_frontend
    fresh = frontend.read_again()
    frontend.take_over(fresh, llm.collective_rpc("steering_reload", args=frontend.reload_arguments(fresh)))
