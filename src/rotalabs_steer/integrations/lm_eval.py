"""Any task of lm-evaluation-harness on a steered model.

python -m rotalabs_steer.integrations.lm_eval run --model rotalabs_steer \\
    --model_args pretrained=MODEL,vectors=FOLDER,strength=1.0 --tasks TASKS

The harness finds models in its own package only, so this module registers one and hands over to the harness's own
command line. In Python, importing it is enough: `simple_evaluate(model="rotalabs_steer", ...)`.
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

_SAME_WHEN_SCORED = ("all", "first")


@register_model("rotalabs_steer")
class SteeredLM(HFLM):  # type: ignore[misc]
    """The harness's Hugging Face model, steered in every call.

    Args:
        pretrained: a model's id or folder, or a loaded one.
        vectors: path of a vector set, a single vector, or a folder of sets.
        strength: one number for every behaviour; or by behaviour, as a dict or as "formality:1.0;refusal:-0.5".
        layer: the one layer at which every behaviour acts; by default each acts at its set's acting layers.
        injection_mode, check_model: as in `MultiVectorInjector`. Tasks that score given answers take "all" or "first".
        template_options: for the chat template, as a dict or as "enable_thinking=false;reasoning_effort=high".
        options: for the harness's own model.
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
        """A conversation as a text, in which no message is lost; the harness calls it with `--apply_chat_template`."""
        if add_generation_prompt:
            return self._chat.render(chat_history)
        return str(super().apply_chat_template(chat_history, add_generation_prompt))

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> Any:
        """Scores are of whole texts in one call, so "the last token" or "the prompt" would mean another place there
        than when the model writes."""
        if self.injector.injection_mode not in _SAME_WHEN_SCORED:
            raise OptionError(
                f"injection_mode is {self.injector.injection_mode!r}, but this task scores given answers, where there "
                f"is no telling prompt from answer. Use one of {_SAME_WHEN_SCORED}."
            )
        return super()._loglikelihood_tokens(requests, *args, **options)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results, and how the model was steered."""
        info: dict[str, Any] = super().get_model_info()
        info["steering"] = {
            "vectors": str(self._vectors),
            "strengths": self.injector.strengths,
            "layers": {name: [v.layer_index for v in vectors] for name, vectors in self.injector.vectors.items()},
            "injection_mode": str(self.injector.injection_mode),
        }
        return info


def main() -> None:
    """The harness's command line, with the model registered."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
