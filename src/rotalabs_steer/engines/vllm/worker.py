"""Steering in a worker process: the model's layers, and the hooks of its model runner."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from rotalabs_steer.engines.vllm.layers import local_decoder_layers, steer_layers
from rotalabs_steer.engines.vllm.settings import SteeringSettings, served_model, table_rows
from rotalabs_steer.engines.vllm.steering import steering_of
from rotalabs_steer.engines.vllm.step import Span, StepWriter
from rotalabs_steer.errors import FileFormatError, OptionError, SteeringError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rotalabs_steer.engines.vllm.catalogue import Catalogue
    from rotalabs_steer.engines.vllm.steering import Steering


class SteeringWorker:
    """Steers what one model runner runs.

    Both model runners of vLLM are known: V1 (`gpu_model_runner.py`) and V2 (`gpu/model_runner.py`).
    """

    def __init__(self, runner: Any, vllm_config: Any, settings: SteeringSettings) -> None:
        self._settings, self._vllm_config = settings, vllm_config
        catalogue = settings.catalogue(vllm_config)
        if settings.key is not None:
            check_key(catalogue, settings.key, settings.vectors)
        model = served_model(vllm_config)
        layers = local_decoder_layers(runner.get_model(), model.num_layers)
        buffers = steer_layers(
            layers,
            catalogue.layers,
            rows=table_rows(vllm_config),
            tokens=runner.max_num_tokens,
            hidden=model.hidden_size,
            dtype=model.dtype,
            device=runner.device,
        )
        self._writer = StepWriter(catalogue, buffers)
        self._requests: dict[str, tuple[Steering, int]] = {}
        follow_runner(runner, self._see, self._prepare)

    def check(self, key: str) -> None:
        """Compares the vectors of this worker with those of an API server, told by its catalogue's key.

        Raises:
            FileFormatError: they differ.
        """
        check_key(self._writer.catalogue, key, self._settings.vectors)

    def reload(self, key: str, used: Sequence[str]) -> bool:
        """Reads the folder of vectors again; requests under way keep the vectors they began with.

        Args:
            used: digests of the vectors that requests may ask for which were accepted before.

        Returns:
            Whether the folder holds what the API server found in it, told by the catalogue's key. If not, nothing has
            changed.
        """
        try:
            fresh = self._settings.catalogue(self._vllm_config).with_older(self._writer.catalogue, used)
        except (SteeringError, OSError):
            return False
        if fresh.key == key:
            self._writer.catalogue = fresh
        return fresh.key == key

    def _see(self, scheduler_output: Any) -> None:
        """Learns of new requests and forgets finished ones. One that is preempted is neither."""
        for req_id in scheduler_output.finished_req_ids:
            self._requests.pop(req_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            steering = steering_of(new.sampling_params)
            if steering is not None:
                self._requests[new.req_id] = (steering, prompt_length(new))

    def _prepare(self, req_ids: Sequence[str], tokens: Iterable[int], computed: Iterable[int]) -> None:
        unsteered: tuple[Steering | None, int] = (None, 0)
        of: Mapping[str, tuple[Steering | None, int]] = self._requests
        self._writer.write(
            [
                Span(*of.get(req_id, unsteered), int(start), int(count))
                for req_id, count, start in zip(req_ids, tokens, computed, strict=True)
            ]
        )


def check_key(catalogue: Catalogue, key: str, folder: str | None) -> None:
    """Compares what a worker read with what the API server read.

    Raises:
        FileFormatError: they differ.
    """
    if catalogue.key != key:
        raise FileFormatError(
            f"The vectors that a worker read from {folder} are not those that the API server read: the folder changed "
            "while the engine started, or is another one on the worker's machine. Start the engine again."
        )


def follow_runner(
    runner: Any,
    see: Callable[[Any], None],
    prepare: Callable[[Sequence[str], Iterable[int], Iterable[int]], None],
) -> None:
    """Calls `see` with every scheduler output, and `prepare` before each step that runs the model.

    `prepare` is given the requests in the order of the step's tokens, how many tokens of each the step has, and how
    many were computed before.

    Raises:
        OptionError: the model runner orders tokens on the device, where they cannot be followed.
    """
    if getattr(runner, "adaptive_verification", None) is not None:
        raise OptionError("Steering does not go together with adaptive verification of drafts: turn it off.")
    execute_model = runner.execute_model

    @functools.wraps(execute_model)
    def execute(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("dummy_run", False):
            see(scheduler_output)
        return execute_model(scheduler_output, *args, **kwargs)

    runner.execute_model = execute
    if hasattr(runner, "_prepare_inputs"):
        runner._prepare_inputs = _before_v1(runner, runner._prepare_inputs, prepare)
    else:
        runner.prepare_inputs = _after_v2(runner.prepare_inputs, prepare)


def _before_v1(runner: Any, prepare_inputs: Callable[..., Any], prepare: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(prepare_inputs)
    def prepared(scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        prepare(batch.req_ids, num_scheduled_tokens, batch.num_computed_tokens_cpu[: len(batch.req_ids)])
        return prepare_inputs(scheduler_output, num_scheduled_tokens, *args, **kwargs)

    return prepared


def _after_v2(prepare_inputs: Callable[..., Any], prepare: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(prepare_inputs)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        batch = prepare_inputs(*args, **kwargs)
        prepare(batch.req_ids, batch.num_scheduled_tokens, batch.num_computed_tokens_np)
        return batch

    return prepared


def prompt_length(new_request: Any) -> int:
    """Tokens of a new request's prompt."""
    ids = new_request.prompt_token_ids
    return len(ids if ids is not None else new_request.prompt_embeds)
