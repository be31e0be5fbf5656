"""Reads, checks and resolves the steering of requests, before the engine sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.engines.vllm.requests import SteeringRequest
from rotalabs_steer.engines.vllm.settings import CONFIG_KEY, SteeringSettings, check_engine
from rotalabs_steer.engines.vllm.steering import EXTRA_ARG, Steering
from rotalabs_steer.errors import FileFormatError, OptionError, SteeringError
from rotalabs_steer.steering.acting_layers import warn_not_steering

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rotalabs_steer.engines.vllm.catalogue import Catalogue

WIRE_KEY = "steering"
"""The name of what a client sends: in `SamplingParams.extra_args`, and in the body of an HTTP request."""


class SteeringFrontend:
    """Reads the steering of requests for one engine.

    Raises:
        OptionError and the errors of `Catalogue.load`: the engine cannot steer. Its model has not been loaded.
    """

    # HTTP requests are parsed by vLLM's classes for request bodies, which know no engine, so they look here.
    _latest: SteeringFrontend | None = None

    def __init__(self, vllm_config: Any) -> None:
        self._vllm_config = vllm_config
        self._settings = SteeringSettings.of(vllm_config)
        self.catalogue: Catalogue | None = None
        if self._settings is not None:
            check_engine(vllm_config, capture=self._settings.capture)
            if self._settings.vectors is not None:
                self.catalogue = self._settings.catalogue(vllm_config)
                self._tell_workers(self.catalogue.key)
                warn_not_steering(self.catalogue.sets.values())
        self._accepted: Any = None
        self._refused: Any = None
        SteeringFrontend._latest = self

    @classmethod
    def of_server(cls) -> SteeringFrontend:
        """The frontend of the engine that was made last in this process. An API server has only one engine.

        Raises:
            OptionError: no engine runs in this process.
        """
        if cls._latest is None:
            raise OptionError("No engine runs in this process, so there is nothing to steer.")
        return cls._latest

    def resolve(self, value: Any) -> Steering | None:
        """The steering that a client asks for; None if all its strengths are 0.

        Raises:
            OptionError, LayerError: the server cannot steer like that, or does not steer at all.
        """
        try:
            if self.catalogue is None:
                raise OptionError(
                    "This engine was started without steering vectors. Start it with: rotalabs-steer serve MODEL "
                    "--vectors FOLDER, or LLM(MODEL, additional_config=steering_config(FOLDER))."
                )
            return self.catalogue.resolve(SteeringRequest.parse(value, self.catalogue.max_strength))
        except SteeringError:
            if self._refused is not None:
                self._refused.inc()
            raise

    def resolved_params(self, params: Any, *, resumable: bool = False) -> Any:
        """Sampling parameters with the resolved steering in place of what the client sent.

        Raises:
            OptionError, LayerError: the server cannot steer like that.
        """
        extra = getattr(params, "extra_args", None) or {}
        if EXTRA_ARG in extra:
            raise OptionError(f"extra_args has {EXTRA_ARG!r}, which the engine sets itself; use {WIRE_KEY!r}.")
        if WIRE_KEY not in extra:
            return params
        steering = self.resolve(extra[WIRE_KEY])
        if steering is not None and resumable:
            raise OptionError("A request whose input is streamed cannot be steered: its prompt has no end yet.")
        extra = {name: value for name, value in extra.items() if name != WIRE_KEY}
        if steering is not None:
            extra[EXTRA_ARG] = steering.document()
            self._count(steering)
        params = params.clone()  # a caller may use one object for several requests
        params.extra_args = extra or None
        return params

    def read_again(self) -> Catalogue:
        """The present vectors of the folder, checked like those at the start. It does not change `catalogue`.

        Raises:
            OptionError: this engine does not steer, or other API servers would not learn of the new vectors.
            LayerError and the errors of `Catalogue.load`: the folder holds a set that cannot be used.
        """
        if self._settings is None or self.catalogue is None:
            raise OptionError("This engine was started without steering vectors, so there are none to read again.")
        parallel = self._vllm_config.parallel_config
        if getattr(parallel, "_api_process_count", 1) > 1 or getattr(parallel, "data_parallel_size", 1) > 1:
            raise OptionError(
                "Only one of several API servers or data-parallel engines would learn of the new vectors. Start the "
                "server again instead."
            )
        return self._settings.catalogue(self._vllm_config).with_older(self.catalogue)

    def take_over(self, fresh: Catalogue, answers: Iterable[bool]) -> None:
        """Serves the result of `read_again`.

        Args:
            answers: whether each worker found the same in the folder.

        Raises:
            FileFormatError: a worker found something else.
        """
        if not all(answers):
            raise FileFormatError("The folder of vectors changed while it was read again. Read it once more.")
        self.catalogue = fresh

    def reload_arguments(self, fresh: Catalogue) -> tuple[str, list[str]]:
        """The arguments of the workers' `steering_reload`: the key of what they should find, and the digests to keep.

        Requests that were resolved before `take_over` use the vectors of the present catalogue. Those that were
        resolved before an earlier reload may use others, which `running_vectors` adds in the engine's process.
        """
        return fresh.key, sorted(self.catalogue.digests if self.catalogue is not None else ())

    def _tell_workers(self, key: str) -> None:
        """Puts the key into the engine's configuration, which is passed to all processes that start later."""
        config = self._vllm_config.additional_config
        self._vllm_config.additional_config = {**config, CONFIG_KEY: {**config[CONFIG_KEY], "key": key}}

    def keep_metrics(self) -> None:
        """Counts requests for Prometheus from now on."""
        from prometheus_client import Counter

        self._accepted = Counter(
            "rotalabs_steer_requests", "Steered requests, by behaviour and scope.", ["behavior", "scope"]
        )
        self._refused = Counter("rotalabs_steer_refused_requests", "Requests whose steering was refused.")

    def _count(self, steering: Steering) -> None:
        if self._accepted is not None:
            for behavior in {addition.behavior for addition in steering.additions}:
                self._accepted.labels(behavior, steering.scope).inc()
