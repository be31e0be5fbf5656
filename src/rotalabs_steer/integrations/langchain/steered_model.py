"""What the chat model and the plain-text model share: a loaded model, its settings, and strengths to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.runnables import ensure_config
from pydantic import AliasChoices, BaseModel, Field, PrivateAttr

from rotalabs_steer.datasets.chat_tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.langchain.generation import Generator, Sampling
from rotalabs_steer.integrations.langchain.steering import Steering

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from langchain_core.runnables import RunnableConfig

    from rotalabs_steer.acting import Vectors

_DTYPES = ("auto", "float32", "bfloat16", "float16")


class SteeredModelFields(BaseModel):
    """Settings of a steered model; those of rotalabs-steer 1.2 keep their names.

    Attributes:
        model_name: Hugging Face id or folder. Not needed where `model` and `tokenizer` are given.
        steering_configs: `{behavior: {"vector_path": ..., "strength": 1.0, "layer": None}}`; `vectors` instead of
            `vector_path` for a set or vector in hand.
        device: "auto" for CUDA, else MPS, else CPU.
        torch_dtype: "auto" for the one the model was saved in, "float32", "bfloat16" or "float16".
        max_new_tokens: an answer is cut there. LangChain's name `max_tokens` does as well.
        temperature: 0 is greedy decoding, and so is `do_sample=False`.
        stop: strings that end an answer and are not part of it; those of a call replace them.
        max_batch_size: how many inputs of `batch` are answered at once.
        injection_mode, check_model: as in `MultiVectorInjector`.
        generation_kwargs: more for `model.generate`, such as `top_p`.
        template_options: for the chat template, as in `{"enable_thinking": False}`.
        model, tokenizer: loaded already, instead of `model_name`. Several steered models may share them.
    """

    model_name: str = ""
    steering_configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    device: str = "auto"
    torch_dtype: str = "auto"
    max_new_tokens: int = Field(default=256, ge=1, validation_alias=AliasChoices("max_new_tokens", "max_tokens"))
    temperature: float = Field(default=0.7, ge=0)
    do_sample: bool = True
    stop: list[str] = Field(default_factory=list)
    max_batch_size: int = Field(default=16, ge=1)
    injection_mode: Any = "all"
    check_model: bool = True
    generation_kwargs: dict[str, Any] = Field(default_factory=dict)
    template_options: dict[str, Any] = Field(default_factory=dict)
    model: Any = Field(default=None, exclude=True, repr=False)
    tokenizer: Any = Field(default=None, exclude=True, repr=False)

    _steering: Steering = PrivateAttr()
    _generator: Generator = PrivateAttr()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)  # what follows stays out of pydantic, which would wrap errors and print the model
        if isinstance(self.model, str):
            raise OptionError(f"model is the text {self.model!r}; give a name as model_name, or a loaded model.")
        if self.model is None:
            self.model, tokenizer = _load(self.model_name, self.device, self.torch_dtype)
            self.tokenizer = self.tokenizer or tokenizer
        elif self.tokenizer is None:
            raise OptionError("A loaded model needs its tokenizer: give tokenizer as well.")
        self.model_name = self.model_name or getattr(self.model.config, "name_or_path", "") or "a loaded model"
        self._steering = Steering(self.model, self.steering_configs, self.injection_mode, check_model=self.check_model)
        self._generator = Generator(ChatTokenizer.of(self.tokenizer, self.template_options), self._steering)

    @property
    def strengths(self) -> dict[str, float]:
        """The present strength of each behaviour."""
        return self._steering.strengths

    def set_strength(self, behavior: str, strength: float) -> None:
        """Changes a behaviour's strength, for calls that begin later. KeyError for an unknown behaviour."""
        self._steering.set_strength(behavior, strength)

    def get_strength(self, behavior: str) -> float:
        """The present strength of a behaviour. KeyError for an unknown one."""
        return self._steering.get_strength(behavior)

    def disable_steering(self, behavior: str | None = None) -> None:
        """Sets the strength of one behaviour, or of all, to 0: the model as it was."""
        for name in self._steering.strengths if behavior is None else [behavior]:
            self._steering.set_strength(name, 0.0)

    def enable_steering(self, behavior: str, strength: float = 1.0) -> None:
        """Sets the strength of a behaviour."""
        self._steering.set_strength(behavior, strength)

    def add_vector(
        self, behavior: str, vector: str | os.PathLike[str] | Vectors, strength: float = 1.0, layer: int | None = None
    ) -> None:
        """Adds a behaviour, or replaces its vectors, while the model is in use.

        Raises:
            VectorError, LayerError, ModelMismatchError: the vectors do not fit the model; nothing has changed.
        """
        self._steering.add(behavior, vector, strength, layer)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What decides the answers: LangChain's caches tell models apart by it."""
        return {
            "model_name": self.model_name,
            "vectors": self._steering.fingerprint(),
            "strengths": self.strengths,
            "injection_mode": repr(self.injection_mode),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "do_sample": self.do_sample,
            "default_stop": self.stop,
            "generation_kwargs": self.generation_kwargs,
            "template_options": dict(self._generator.chat.template_options),
        }

    def _call_strengths(self, config: RunnableConfig | None, given: Mapping[str, float] | None) -> dict[str, float]:
        """The strengths of one call: what it was given, else what its config says, else the present ones."""
        configured = ensure_config(config).get("configurable", {}).get("strengths")
        return self._steering.merged({**(configured or {}), **(given or {})})

    def _sampling(self, stop: Sequence[str] | None, options: dict[str, Any], *ends: str) -> Sampling:
        """How one call is sampled. Takes what it knows out of `options`.

        Raises:
            OptionError: there is an option left that nothing would be done with.
        """
        most = options.pop("max_new_tokens", options.pop("max_tokens", self.max_new_tokens))
        temperature = options.pop("temperature", self.temperature)
        greedy = not options.pop("do_sample", self.do_sample)
        more = {**self.generation_kwargs, **options.pop("generation_kwargs", {})}
        options.pop("stream", None)  # LangChain's own
        if options:
            raise OptionError(
                f"Unknown options {sorted(options)}. A call takes strengths, stop, max_new_tokens, temperature, "
                "do_sample, tools, tool_choice and generation_kwargs."
            )
        stops = tuple(dict.fromkeys((*(self.stop if stop is None else stop), *ends)))
        return Sampling(most, 0.0 if greedy else temperature, stops, tuple(sorted(more.items())))


def _load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rotalabs_steer.decoder import fastest_device

    if not name:
        raise OptionError("Give model_name, or a loaded model with its tokenizer.")
    if dtype not in _DTYPES:
        raise OptionError(f"torch_dtype is {dtype!r}; use one of {_DTYPES}.")
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    return model.to(fastest_device() if device == "auto" else device).eval(), AutoTokenizer.from_pretrained(name)
