"""A language model that judges answers: refusal, coherence, helpfulness, or a behaviour that it knows from pairs.

with LLMJudge("qwen3", base_url="http://localhost:8000/v1") as judge:
    print(judge.estimate_cost(responses))
    verdicts = judge.evaluate_batch(responses)
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from rotalabs_steer.arguments import list_of
from rotalabs_steer.datasets.splits import spread
from rotalabs_steer.errors import MalformedVerdictError, MissingVerdictError, OptionError
from rotalabs_steer.judging.behavior_judge import BehaviorJudge
from rotalabs_steer.judging.endpoints import Access, open_endpoint
from rotalabs_steer.judging.questions import BEHAVIOR, COHERENCE, HELPFULNESS, REFUSAL, Question
from rotalabs_steer.judging.scoring import differing
from rotalabs_steer.judging.verdict_cache import VerdictCache, default_cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from rotalabs_steer.datasets.pairs import ContrastPair

DEFAULT_MODEL = "claude-sonnet-4-6"
"""1.2's default, claude-sonnet-4-20250514, was retired by its vendor on 15 June 2026."""

_T = TypeVar("_T")

_EXAMPLES = 4
"""Pairs that a judge is shown of a behaviour."""

_BYTES_PER_TOKEN = 3
"""Of UTF-8: fewer than English has (about four), so that an estimate errs upwards."""


@dataclass(frozen=True)
class JudgeCost:
    """What judging takes, or took.

    Attributes:
        requests: calls of the endpoint, retries not counted.
        cached: verdicts that the cache has.
        input_tokens, output_tokens: of the requests.
        usd: at the judge's prices; None where it was given none.
    """

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int
    usd: float | None


class LLMJudge:
    """Asks a model about texts, with a JSON schema for the verdict and a cache by content.

    The text to judge is encoded as data, and a verdict that does not meet the schema exactly is asked for once more
    and then an error: nothing is guessed from its wording.

    Args:
        model: name of the model.
        api_key: else from ANTHROPIC_API_KEY or OPENAI_API_KEY; a `base_url` may need none.
        cache_responses: keep verdicts on disk.
        provider: "anthropic" or "openai". By default "anthropic" for a model called claude without a `base_url`, else
            "openai".
        base_url: of an OpenAI-compatible (`http://localhost:8000/v1`) or Anthropic endpoint.
        cache_dir: folder of the cache; by default in the user's cache.
        max_tokens: limit of one verdict.
        max_retries: further attempts after a connection error, a 408, 409, 429 or 5xx.
        timeout: seconds of one attempt.
        concurrency: requests at a time in `evaluate_batch`.
        prices: US dollars for a million input and a million output tokens, from the vendor's list.
        options: further fields of every request, such as `{"temperature": 0, "seed": 0}`.

    Raises:
        OptionError: there is no key, the provider is unknown or a number is out of range.
        MissingDependencyError: the provider's client is not installed.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        api_key: str | None = None,
        cache_responses: bool = True,
        *,
        provider: Literal["anthropic", "openai"] | None = None,
        base_url: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        max_tokens: int = 300,
        max_retries: int = 4,
        timeout: float = 60.0,
        concurrency: int = 4,
        prices: tuple[float, float] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if max_tokens < 1 or max_retries < 0 or timeout <= 0 or concurrency < 1:
            raise OptionError(
                "max_tokens and concurrency must be at least 1, max_retries at least 0 and timeout above 0, got "
                f"{max_tokens}, {concurrency}, {max_retries} and {timeout}."
            )
        is_claude = model.startswith("claude") and base_url is None
        chosen = provider or ("anthropic" if is_claude else "openai")
        self._access = Access(chosen, model, api_key, base_url, max_tokens, max_retries, timeout, dict(options or {}))
        self._endpoint = open_endpoint(self._access)
        directory = default_cache_directory() if cache_dir is None else Path(cache_dir)
        self._cache = VerdictCache(directory) if cache_responses else None
        self._concurrency, self._prices = concurrency, prices
        self._lock = Lock()
        self._spent = JudgeCost(0, 0, 0, 0, self._usd(0, 0))

    @property
    def spent(self) -> JudgeCost:
        """What this judge has taken so far, in the tokens that the endpoint reported."""
        return self._spent

    def is_refusal(self, response: str) -> bool:
        """Whether the verdict on a response is "refusal"; "unclear" is not.

        Raises:
            MissingVerdictError: the judge gave no valid verdict on this text.
            JudgeError: the judge cannot be asked at all.
        """
        return self.classify_response(response)[0] == "refusal"

    def classify_response(self, response: str) -> tuple[Literal["refusal", "compliance", "unclear"], float]:
        """The verdict on a response, and how sure the judge says it is, from 0 to 1. Raises as `is_refusal`."""
        verdict = self._ask(REFUSAL, response=response)
        return verdict["verdict"], verdict["confidence"] / 100

    def judge_coherence(self, response: str) -> float:
        """How coherent a response is: 0, 0.25, 0.5, 0.75 or 1. Raises as `is_refusal`."""
        return _unit(self._ask(COHERENCE, response=response)["score"])

    def judge_helpfulness(self, prompt: str, response: str) -> float:
        """How helpful a response to a prompt is: 0, 0.25, 0.5, 0.75 or 1. Raises as `is_refusal`."""
        return _unit(self._ask(HELPFULNESS, prompt=prompt, response=response)["score"])

    def judge_behavior(self, response: str, positive: Sequence[str], negative: Sequence[str]) -> float:
        """How much a response is like positive examples rather than negative ones, from −1 to 1 in thirds.

        Raises as `is_refusal`.
        """
        examples = {"positive_examples": list(positive), "negative_examples": list(negative)}
        score: int = self._ask(BEHAVIOR, **examples, response=response)["score"]
        return (score - 4) / 3

    def learn(self, pairs: Sequence[ContrastPair]) -> BehaviorJudge:
        """The judge of the behaviour that pairs show, which `tune(judge=...)` uses. Nothing is asked yet.

        Args:
            pairs: a few of them, taken evenly, are the examples that every request shows.

        Raises:
            DatasetError: the responses of the pairs do not differ.
        """
        shown = spread(differing(pairs), _EXAMPLES)
        return BehaviorJudge(self, tuple(pair.positive for pair in shown), tuple(pair.negative for pair in shown))

    def evaluate_batch(
        self,
        responses: Sequence[str],
        check_refusal: bool = True,
        check_coherence: bool = True,
        *,
        max_usd: float | None = None,
    ) -> list[dict[str, Any]]:
        """The verdicts on many responses, several at a time.

        Each is a dictionary with `response`, and as asked for `is_refusal` and `coherence`. What got no verdict is
        None, with the reason in `errors`, a dictionary by question.

        Args:
            max_usd: do not start if the estimate is higher.

        Raises:
            OptionError: the estimate is above `max_usd`, or there are no prices to make one of.
            JudgeError: the judge cannot be asked at all.
        """
        responses = list_of("responses", responses)
        if max_usd is not None:
            self._check_budget(self.estimate_cost(responses, check_refusal, check_coherence), max_usd)

        def evaluate(response: str) -> dict[str, Any]:
            result: dict[str, Any] = {"response": response, "errors": {}}
            for asked, key, ask in (
                (check_refusal, "is_refusal", self.is_refusal),
                (check_coherence, "coherence", self.judge_coherence),
            ):
                if asked:
                    try:
                        result[key] = ask(response)
                    except MissingVerdictError as error:
                        result[key] = None
                        result["errors"][key] = str(error)
            return result

        return list(map(copy.deepcopy, self.of_each(responses, evaluate)))

    def of_each(self, texts: Sequence[str], ask: Callable[[str], _T]) -> list[_T]:
        """What `ask` returns for each text, several at a time. It is called once where the same text comes again."""
        distinct = list(dict.fromkeys(texts))
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            found = dict(zip(distinct, pool.map(ask, distinct), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
        return [found[text] for text in texts]

    def estimate_cost(
        self, responses: Sequence[str], check_refusal: bool = True, check_coherence: bool = True
    ) -> JudgeCost:
        """What `evaluate_batch` would take at most, if no verdict has to be asked for twice.

        A token is reckoned for every 3 bytes of UTF-8, and `max_tokens` for every verdict. Sends nothing.
        """
        questions = [question for question, asked in ((REFUSAL, check_refusal), (COHERENCE, check_coherence)) if asked]
        requests = cached = size = 0
        for question, response in itertools.product(questions, dict.fromkeys(responses)):
            if self._cached(question, self._request(question, response=response)) is not None:
                cached += 1
                continue
            requests += 1
            sent = (question.instructions, question.message(response=response), json.dumps(question.schema))
            size += sum(math.ceil(len(part.encode()) / _BYTES_PER_TOKEN) for part in sent)
        output = requests * self._access.max_tokens
        return JudgeCost(requests, cached, size, output, self._usd(size, output))

    def clear_cache(self) -> None:
        """Deletes every verdict in the cache's folder, those of other judges included."""
        if self._cache is not None:
            self._cache.clear()

    def close(self) -> None:
        """Closes the connections."""
        self._endpoint.close()

    def __repr__(self) -> str:
        access = self._access
        return f"LLMJudge({access.model!r}, {access.provider!r}, {access.base_url!r}, {dict(access.options)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: Question, **texts: Any) -> dict[str, Any]:
        """The parsed verdict, from the cache or the endpoint. Only valid verdicts are kept."""
        request = self._request(question, **texts)
        cached = self._cached(question, request)
        if cached is not None:
            self._count(cached=1)
            return cached
        try:
            verdict, parsed = self._once(question, request["message"])
        except MalformedVerdictError:
            verdict, parsed = self._once(question, request["message"])
        if self._cache is not None:
            self._cache.put(request, verdict)
        return parsed

    def _once(self, question: Question, message: str) -> tuple[str, dict[str, Any]]:
        reply = self._endpoint.ask(question.instructions, message, question.schema)
        self._count(requests=1, input_tokens=reply.input_tokens, output_tokens=reply.output_tokens)
        return reply.verdict, question.parse(reply.verdict)

    def _request(self, question: Question, **texts: Any) -> dict[str, Any]:
        """Everything that determines a verdict; the key does not."""
        return {
            "provider": self._access.provider,
            "base_url": self._access.base_url or os.environ.get(f"{self._access.provider.upper()}_BASE_URL"),
            "model": self._access.model,
            "max_tokens": self._access.max_tokens,
            "options": self._access.options,
            "instructions": question.instructions,
            "schema": question.schema,
            "message": question.message(**texts),
        }

    def _cached(self, question: Question, request: Mapping[str, Any]) -> dict[str, Any] | None:
        verdict = self._cache.get(request) if self._cache is not None else None
        if verdict is None:
            return None
        with contextlib.suppress(MalformedVerdictError):
            return question.parse(verdict)
        return None

    def _count(self, *, requests: int = 0, cached: int = 0, input_tokens: int = 0, output_tokens: int = 0) -> None:
        with self._lock:
            taken, spent = self._spent.input_tokens + input_tokens, self._spent.output_tokens + output_tokens
            self._spent = JudgeCost(
                self._spent.requests + requests, self._spent.cached + cached, taken, spent, self._usd(taken, spent)
            )

    def _usd(self, input_tokens: int, output_tokens: int) -> float | None:
        if self._prices is None:
            return None
        return (input_tokens * self._prices[0] + output_tokens * self._prices[1]) / 1e6

    def _check_budget(self, estimate: JudgeCost, max_usd: float) -> None:
        if estimate.usd is None:
            raise OptionError("max_usd needs the judge's prices: LLMJudge(..., prices=(input, output)).")
        if estimate.usd > max_usd:
            raise OptionError(
                f"Judging may cost {estimate.usd:.4f} US dollars ({estimate.requests} requests), more than "
                f"max_usd={max_usd}. Nothing was sent."
            )


def _unit(score: int) -> float:
    """A score of 1 to 5 as 0 to 1."""
    return (score - 1) / 4
