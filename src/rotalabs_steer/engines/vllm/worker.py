"""Steering in a worker process: it changes the model's layers and follows the model runner's steps."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from rotalabs_steer.engines.vllm.layers import local_decoder_layers, steer_layers
from rotalabs_steer.engines.vllm.settings import SteeringSettings, served_model, table_rows
from rotalabs_steer.engines.vllm.steering import steering_of
from rotalabs_steer.engines.vllm.step import Span, StepWriter
from rotalabs_steer.errors import FileFormatError, OptionError, SteeringError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rotalabs_steer.engines.vllm.catalogue import Catalogue
    from rotalabs_steer.engines.vllm.steering import Steering


class SteeringWorker:
    """Steers the model of one model runner."""

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
        """Compares the vectors of this worker with those of the API server whose catalogue has this key.

        Raises:
            FileFormatError: they differ.
        """
        check_key(self._writer.catalogue, key, self._settings.vectors)

    def reload(self, key: str, used: Sequence[str]) -> bool:
        """Reads the folder of vectors again. Requests that are under way keep the vectors they began with.

        Args:
            key: the `Catalogue.key` of what the API server found in the folder.
            used: digests of the vectors that requests may use which were accepted before.

        Returns:
            Whether this worker found the same. If not, it keeps the vectors it had.
        """
        try:
            fresh = self._settings.catalogue(self._vllm_config).with_older(self._writer.catalogue, used)
        except (SteeringError, OSError):  # the API server reports one error for all workers
            return False
        if fresh.key == key:
            self._writer.catalogue = fresh
        return fresh.key == key

    def _see(self, scheduler_output: Any) -> None:
        """Adds new requests and removes finished ones. A preempted request stays: it is neither when it runs again."""
        for req_id in scheduler_output.finished_req_ids:
            self._requests.pop(req_id, None)
        for new in scheduler_output.scheduled_new_reqs:
            steering = steering_of(new.sampling_params)
            if steering is not None:
                self._requests[new.req_id] = (steering, _prompt_length(new))

    def _prepare(self, req_ids: Sequence[str], tokens: Iterable[int], computed: Iterable[int]) -> None:
        spans = []
        for req_id, count, start in zip(req_ids, tokens, computed, strict=True):
            steering, prompt_tokens = self._requests.get(req_id, (None, 0))
            spans.append(Span(steering, prompt_tokens, int(start), int(count)))
        self._writer.write(spans)


def check_key(catalogue: Catalogue, key: str, folder: str | None) -> None:
    """Compares the vectors that a worker read with those that the API server read.

    Raises:
        FileFormatError: they differ.
    """
    if catalogue.key != key:
        raise FileFormatError(
            f"The vectors that a worker read from {folder} are not those that the API server read: the folder changed "
            "while the engine started, or it differs on the worker's machine. Start the engine again."
        )


def follow_runner(
    runner: Any,
    see: Callable[[Any], None],
    prepare: Callable[[Sequence[str], Iterable[int], Iterable[int]], None],
) -> None:
    """Calls two functions in every step of a model runner.

    Both model runners of vLLM are supported: V1 (`gpu_model_runner.py`) and V2 (`gpu/model_runner.py`).

    Args:
        see: called with every scheduler output.
        prepare: called before the model runs, with the ids of the requests in the order of the step's tokens, the
            number of each request's tokens in the step, and the number of its tokens that were computed before.

    Raises:
        OptionError: the model runner orders tokens on the device, where we cannot follow them.
    """
    if getattr(runner, "adaptive_verification", None) is not None:
        raise OptionError("Steering does not go together with adaptive verification of drafts: turn it off.")
    execute_model = runner.execute_model

    @functools.wraps(execute_model)
    def execute(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("dummy_run", False):  # a dummy run, as for warm-up, answers no request
            see(scheduler_output)
        return execute_model(scheduler_output, *args, **kwargs)

    runner.execute_model = execute
    # V1 has ordered the requests before it calls this method, V2 orders them inside it.
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


def _prompt_length(new_request: Any) -> int:
    ids = new_request.prompt_token_ids
    return len(ids if ids is not None else new_request.prompt_embeds)
