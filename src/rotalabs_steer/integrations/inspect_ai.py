"""Any Inspect task on a steered model.

inspect eval task.py --model rotalabs_steer/MODEL -M vectors=FOLDER -M strength=1.0

Inspect finds this module through the entry point group `inspect_ai` and loads it at every start, so it imports nothing
heavy before a model is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import OptionError, missing_dependency

try:
    from inspect_ai.model import modelapi
except ImportError as error:
    raise missing_dependency("The Inspect integration", "inspect", error) from error

if TYPE_CHECKING:
    from inspect_ai.model import ModelAPI


@modelapi(name="rotalabs_steer")
def rotalabs_steer() -> type[ModelAPI]:
    """Inspect's Hugging Face provider, steered in every call.

    Model arguments: `vectors` (path of a set, a single vector, or a folder of sets); `strength` (one number, or
    `{behavior: number}`); `layer`; `injection_mode`; `check_model`; and those of the provider, such as `device`.
    """
    from inspect_ai.model._providers.hf import HuggingFaceAPI

    from rotalabs_steer.integrations.vector_sources import steer_model

    class SteeredHuggingFaceAPI(HuggingFaceAPI):
        def __init__(
            self,
            model_name: str,
            *args: Any,
            vectors: str | None = None,
            strength: Any = 1.0,
            layer: int | None = None,
            injection_mode: str = "all",
            check_model: bool = True,
            **options: Any,
        ) -> None:
            if vectors is None:
                raise OptionError("Say which vectors steer the model: -M vectors=FOLDER.")
            super().__init__(model_name, *args, **options)
            self.injector = steer_model(
                self.model, vectors, strength, layer=layer, injection_mode=injection_mode, check_model=check_model
            )

        def close(self) -> None:
            self.injector.detach()
            super().close()

    return SteeredHuggingFaceAPI
