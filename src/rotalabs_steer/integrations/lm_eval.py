"""Runs any task of lm-evaluation-harness on a steered model.

python -m rotalabs_steer.integrations.lm_eval run --model rotalabs_steer \\
    --model_args pretrained=MODEL,vectors=FOLDER,strength=1.0 --tasks TASKS

The harness only finds models of its own package, so this module registers a model and then calls the harness's command
line. In Python, import the module before `simple_evaluate(model="rotalabs_steer", ...)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError, missing_dependency
from rotalabs_steer.integrations.harness_steering import steer_model
from rotalabs_steer.integrations.template_options import parse_template_options

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise missing_dependency("The lm-eval integration", "lm-eval", error) from error

if TYPE_CHECKING:
    from collections.abc import Mapping

# A score is computed in one call on the whole text. In it, the other scopes would mean other tokens than in generation.
_SCOPES_DEFINED_FOR_SCORING = ("all", "first")


@register_model("rotalabs_steer")
class SteeredLM(HFLM):  # type: ignore[misc]
    """The harness's Hugging Face model, steered in every call.

    Args:
        pretrained: a model's id or folder, or a loaded one.
        vectors: the path of a vector set, of a single vector, or of a folder of sets.
        strength: one number for every behaviour; or numbers by behaviour, as a dict or as "formality:1.0;refusal:-0.5".
        layer: the one layer at which every behaviour acts; by default each acts at its set's acting layers.
        injection_mode, check_model: as in `MultiVectorInjector`. Tasks that score given answers need "all" or "first".
        template_options: for the chat template, as a dict or as "enable_thinking=false;reasoning_effort=high".
        options: arguments of the harness's own model.
    """

    def __init__(
        self,
        pretrained: Any,
        vectors: str,
        strength: float | str | Mapping[str, float] = 1.0,
        layer: int | None = None,
        injection_mode: str = "all",
        check_model: bool = True,
        template_options: str | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(pretrained=pretrained, **options)
        self.chat_template_args: dict[str, Any] = self.chat_template_args | parse_template_options(template_options)
        self._chat = ChatTokenizer.of(self.tokenizer, self.chat_template_args)
        self.injector = steer_model(
            self.model, vectors, strength, layer=layer, injection_mode=injection_mode, check_model=check_model
        )
        self._vectors = vectors

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation as a string. The harness calls it with `--apply_chat_template`.

        Raises:
            ChatTemplateError: the template drops or refuses a message.
        """
        if add_generation_prompt:
            return self._chat.render(chat_history)
        return str(super().apply_chat_template(chat_history, add_generation_prompt))

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
        """Scores given answers.

        Raises:
            OptionError: the scope is not defined for scoring.
        """
        if self.injector.injection_mode not in _SCOPES_DEFINED_FOR_SCORING:
            raise OptionError(
                f"injection_mode is {self.injector.injection_mode!r}, but this task scores given answers. Prompt and "
                f"answer then run in one call, for which only {_SCOPES_DEFINED_FOR_SCORING} are defined. Use one of "
                "these."
            )
        return super()._loglikelihood_tokens(requests, *args, **options)

    def get_model_info(self) -> dict[str, Any]:
        """The facts about the model that the harness writes into its results, and how it was steered."""
        info: dict[str, Any] = super().get_model_info()
        info["steering"] = {
            "vectors": str(self._vectors),
            "strengths": self.injector.strengths,
            "layers": {name: [v.layer_index for v in vectors] for name, vectors in self.injector.vectors.items()},
            "injection_mode": str(self.injector.injection_mode),
        }
        return info


def main() -> None:
    """Runs the harness's command line. The model is registered by the import of this module."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
