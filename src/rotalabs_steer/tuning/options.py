"""What a user can choose of a tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import as_integer, as_real
from rotalabs_steer.errors import OptionError
from rotalabs_steer.extraction.methods import DEFAULT_METHOD
from rotalabs_steer.extraction.readout import readout_name
from rotalabs_steer.files.records import to_json
from rotalabs_steer.measures.coherence import DEFAULT_BUDGET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rotalabs_steer.extraction.readout import Readout

_JUDGES = ("auto", "meaning", "words")


@dataclass(frozen=True)
class TuningOptions:
    """How tuning extracts vectors, and how much it measures.

    Attributes:
        method: how vectors are extracted; see `extract_vectors`.
        token_position: where they are read. By default both the responses and their last tokens are tried.
        refine: whether to try the chosen vector turned towards the model's gradient; see `tuning.refinement`.
        judge_by: what the default judge goes by: "meaning" (an `EmbeddingJudge`), "words" (a `TextJudge`), or "auto",
            which is "meaning" where sentence-transformers and all-mpnet-base-v2 are installed, else "words".
        budget: the coherence budget: the most KL on neutral text, in nats per token, that strength 1 or −1 may cost.
        candidates: how many candidate layers to steer before choosing one.
        validation_pairs: how many validation pairs score the layers and the candidates. They are taken evenly from the
            split.
        prompts: how many prompts of each split the model answers.
        max_new_tokens: the maximum number of new tokens in each answer.
        template_options: options of the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: a number is not above zero, or not an integer where it counts something.
    """

    method: str = DEFAULT_METHOD
    token_position: Readout | None = None
    refine: bool = True
    judge_by: str = "auto"
    budget: float = DEFAULT_BUDGET
    candidates: int = field(default=3, metadata={"key": "finalists"})
    validation_pairs: int = 8
    prompts: int = 12
    max_new_tokens: int = 32
    template_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("budget", "candidates", "validation_pairs", "prompts", "max_new_tokens"):
            given = getattr(self, name)
            number = as_real(given) if name == "budget" else as_integer(given)
            if number is None or number <= 0:
                kind = "a number" if name == "budget" else "an integer"
                raise OptionError(f"{name} is {given!r}; it must be {kind} above zero.")
            object.__setattr__(self, name, number)
        if self.judge_by not in _JUDGES:
            raise OptionError(f"judge_by is {self.judge_by!r:.80}; use one of: {', '.join(_JUDGES)}.")

    def to_record(self) -> dict[str, Any]:
        """The options as JSON values."""
        position = self.token_position
        record: dict[str, Any] = to_json(self)
        return record | {"token_position": None if position is None else readout_name(position)}
