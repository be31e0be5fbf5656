"""The vLLM plugin. It changes some classes of vLLM, all of them here.

vLLM calls `register` in each of its processes. Every engine's requests are checked for steering, but only the models of
engines that are configured to steer are changed.
"""

from __future__ import annotations

import functools
from typing import Any

from rotalabs_steer.engines.vllm.frontend import WIRE_KEY, SteeringFrontend
from rotalabs_steer.engines.vllm.prefix_cache import with_steering_keys
from rotalabs_steer.engines.vllm.settings import CONFIG_KEY, SteeringSettings
from rotalabs_steer.engines.vllm.steering import running_vectors
from rotalabs_steer.errors import MissingDependencyError, OptionError

OLDEST_VLLM = (0, 32)

_registered = False


def register() -> None:
    """Adds steering to vLLM in this process. A second call does nothing.

    Raises:
        MissingDependencyError: this version of vLLM is too old.
    """
    global _registered  # noqa: PLW0603 - vLLM's classes are changed once a process
    if _registered:
        return
    _check_version()
    _change_requests()
    _change_http_requests()
    _change_workers()
    _change_reloads()
    _change_cache_keys()
    _registered = True


def _check_version() -> None:
    from vllm.version import __version_tuple__ as found

    release = tuple(found[:2])
    if release != (0, 0) and release < OLDEST_VLLM:  # a build from source may have version 0.0
        raise MissingDependencyError(
            f"vLLM {'.'.join(map(str, found[:3]))} is too old to steer. Install a newer one with: "
            'pip install "rotalabs-steer[vllm]"'
        )


def _change_requests() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    create, process_inputs = InputProcessor.__init__, InputProcessor.process_inputs

    @functools.wraps(create)
    def create_with_frontend(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        self.steering_frontend = SteeringFrontend(vllm_config)
        create(self, vllm_config, *args, **kwargs)

    @functools.wraps(process_inputs)
    def process_steered(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        params = self.steering_frontend.resolved_params(params, resumable=kwargs.get("resumable", False))
        return process_inputs(self, request_id, prompt, params, *args, **kwargs)

    InputProcessor.__init__ = create_with_frontend
    InputProcessor.process_inputs = process_steered


def _change_http_requests() -> None:
    """Passes `steering` on from the body of a request.

    It is resolved here, too, because an error after the beginning of a stream would not reach the client as an error.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for request_class in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        request_class.to_sampling_params = _with_body_key(request_class.to_sampling_params)
        if hasattr(request_class, "to_beam_search_params"):
            request_class.to_beam_search_params = _refusing_steering(request_class.to_beam_search_params)


def _with_body_key(to_sampling_params: Any) -> Any:
    @functools.wraps(to_sampling_params)
    def to_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = to_sampling_params(self, *args, **kwargs)
        sent = (self.model_extra or {}).get(WIRE_KEY)
        if sent is not None:
            SteeringFrontend.of_server().resolve(sent)
            params.extra_args = {**(params.extra_args or {}), WIRE_KEY: sent}
        return params

    return to_params


def _refusing_steering(to_beam_search_params: Any) -> Any:
    @functools.wraps(to_beam_search_params)
    def to_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (self.model_extra or {}).get(WIRE_KEY) is not None:
            raise OptionError("vLLM's beam search does not pass steering on. Turn use_beam_search off to steer.")
        return to_beam_search_params(self, *args, **kwargs)

    return to_params


def _change_workers() -> None:
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    from rotalabs_steer.engines.vllm.capture import CaptureWorker
    from rotalabs_steer.engines.vllm.worker import SteeringWorker

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = self.worker.load_model(*args, **kwargs)
        settings = SteeringSettings.of(self.vllm_config)
        if settings is not None:
            runner, config = self.worker.model_runner, self.vllm_config
            self.steering = (
                CaptureWorker(runner, config) if settings.capture else SteeringWorker(runner, config, settings)
            )
        return loaded

    WorkerWrapperBase.load_model = load_model
    WorkerWrapperBase.steering_check = lambda self, key: self.steering.check(key)
    WorkerWrapperBase.steering_reload = lambda self, key, used: self.steering.reload(key, used)
    WorkerWrapperBase.steering_take = lambda self: self.steering.take()


def _change_reloads() -> None:
    """Adds the vectors of waiting and running requests to a reload, because only the engine knows all of them."""
    from vllm.v1.engine.core import EngineCore

    collective_rpc = EngineCore.collective_rpc

    @functools.wraps(collective_rpc)
    def rpc(self: Any, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> Any:
        if method == "steering_reload":  # with the arguments of `SteeringFrontend.reload_arguments`
            key, used = args
            args = (key, [*used, *running_vectors(self.scheduler.requests.values())])
        return collective_rpc(self, method, timeout, args, kwargs)

    EngineCore.collective_rpc = rpc


def _change_cache_keys() -> None:
    """Makes steering part of the keys of KV cache blocks and of compiled graphs."""
    from vllm.config import VllmConfig
    from vllm.v1.core import kv_cache_utils

    kv_cache_utils.generate_block_hash_extra_keys = with_steering_keys(kv_cache_utils.generate_block_hash_extra_keys)
    compute_hash = VllmConfig.compute_hash

    @functools.wraps(compute_hash)
    def compute_hash_with_graph(self: Any) -> Any:
        settings = SteeringSettings.of(self)
        if settings is None:
            return compute_hash(self)
        # vLLM hashes `additional_config`, and would compile again for another folder or another maximum strength.
        given = self.additional_config
        self.additional_config = {**given, CONFIG_KEY: settings.graph_key(self)}
        try:
            return compute_hash(self)
        finally:
            self.additional_config = given

    VllmConfig.compute_hash = compute_hash_with_graph
