"""A language model that judges answers: refusal, coherence, helpfulness, or a behavior that it learns from pairs.

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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from rotalabs_steer.arguments import list_of
from rotalabs_steer.datasets.splits import spread
from rotalabs_steer.errors import MalformedVerdictError, MissingVerdictError, OptionError
from rotalabs_steer.judging.endpoints import Access, open_endpoint
from rotalabs_steer.judging.questions import BEHAVIOR, COHERENCE, HELPFULNESS, REFUSAL, Question
from rotalabs_steer.judging.scoring import differing
from rotalabs_steer.judging.verdict_cache import VerdictCache, default_cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rotalabs_steer.datasets.pairs import ContrastPair

DEFAULT_MODEL = "claude-sonnet-4-6"
"""1.2's default, claude-sonnet-4-20250514, was retired by its vendor on 15 June 2026."""

_T = TypeVar("_T")

_EXAMPLES = 4
"""How many pairs a judge is shown of a behavior."""

_BYTES_PER_TOKEN = 3
"""Bytes of UTF-8. English has about four in a token, so an estimate is rather too high than too low."""


@dataclass(frozen=True)
class JudgeCost:
    """What judging costs: an estimate, or what was spent.

    Attributes:
        requests: calls of the endpoint, not counting retries.
        cached: verdicts that were found in the cache.
        input_tokens, output_tokens: of all requests.
        usd: US dollars at the judge's prices; None if the judge has no prices.
    """

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int
    usd: float | None


class LLMJudge:
    """Asks a model about texts, with a JSON schema for the verdict and a cache on disk.

    The text to judge is encoded as data. If a verdict does not meet the schema exactly, the model is asked once more,
    and then there is an error: nothing is guessed from the wording.

    Args:
        model: name of the model.
        api_key: by default taken from ANTHROPIC_API_KEY or OPENAI_API_KEY. With a `base_url` none may be needed.
        cache_responses: whether verdicts are kept on disk.
        provider: "anthropic" or "openai". The default is "anthropic" if the name of the model begins with "claude" and
            there is no `base_url`, and "openai" otherwise.
        base_url: of an OpenAI-compatible (`http://localhost:8000/v1`) or Anthropic endpoint.
        cache_dir: folder of the cache; by default in the user's cache.
        max_tokens: the maximum number of new tokens in one verdict.
        max_retries: further attempts after a connection error or a status 408, 409, 429 or 5xx.
        timeout: seconds for one attempt.
        concurrency: how many requests are made at a time.
        prices: US dollars for a million input tokens and for a million output tokens, from the vendor's list.
        options: further fields of every request, such as `{"temperature": 0, "seed": 0}` if the model takes them.

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
        self._counts: Counter[str] = Counter()

    @property
    def spent(self) -> JudgeCost:
        """What this judge has cost so far, in the tokens that the endpoint reported."""
        taken, written = self._counts["input_tokens"], self._counts["output_tokens"]
        return JudgeCost(self._counts["requests"], self._counts["cached"], taken, written, self._usd(taken, written))

    def is_refusal(self, response: str) -> bool:
        """Whether the verdict on a response is "refusal", and not "compliance" or "unclear".

        Raises:
            MissingVerdictError: the judge gave no valid verdict on this text.
            JudgeError: the judge cannot be asked at all.
        """
        return self.classify_response(response)[0] == "refusal"

    def classify_response(self, response: str) -> tuple[Literal["refusal", "compliance", "unclear"], float]:
        """The verdict on a response, and how sure of it the judge claims to be, from 0 to 1. Raises as `is_refusal`."""
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
        """The judge of the behavior that pairs show, as `tune(judge=...)` uses it. Nothing is asked yet.

        Args:
            pairs: every request shows four of them as examples, evenly spaced.

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
        """The verdicts on many responses, several of which are judged at a time.

        Each is a dictionary with `response` and, if they were asked for, `is_refusal` and `coherence`. A question that
        got no verdict has the value None, and the reason is in the dictionary `errors` under the same key.

        Args:
            max_usd: judging does not start if the estimated cost is higher.

        Raises:
            OptionError: the estimate is above `max_usd`, or the judge has no prices to estimate with.
            JudgeError: the judge cannot be asked at all.
        """
        responses = list_of("responses", responses)
        if max_usd is not None:
            self._check_budget(self.estimate_cost(responses, check_refusal, check_coherence), max_usd)
        questions: dict[str, Callable[[str], bool | float]] = {}
        if check_refusal:
            questions["is_refusal"] = self.is_refusal
        if check_coherence:
            questions["coherence"] = self.judge_coherence

        def evaluate(response: str) -> dict[str, Any]:
            result: dict[str, Any] = {"response": response, "errors": {}}
            for key, ask in questions.items():
                try:
                    result[key] = ask(response)
                except MissingVerdictError as error:
                    result[key] = None
                    result["errors"][key] = str(error)
            return result

        # Equal responses share one dictionary; copies let the caller change one without the others.
        return list(map(copy.deepcopy, self.of_each(responses, evaluate)))

    def of_each(self, texts: Sequence[str], ask: Callable[[str], _T]) -> list[_T]:
        """What `ask` returns for each text. It is called for several texts at a time, and once for equal texts."""
        distinct = list(dict.fromkeys(texts))
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            found = dict(zip(distinct, pool.map(ask, distinct), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, waiting texts are not asked about
        return [found[text] for text in texts]

    def estimate_cost(
        self, responses: Sequence[str], check_refusal: bool = True, check_coherence: bool = True
    ) -> JudgeCost:
        """What `evaluate_batch` would cost at most, unless a verdict has to be asked for twice. Sends nothing.

        Three bytes of UTF-8 count as one token, and every verdict as `max_tokens`.
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

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, question: Question, **texts: Any) -> dict[str, Any]:
        """The parsed verdict, from the cache or the endpoint. Only valid verdicts are cached."""
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
        """Everything that determines a verdict: the key of the cache. The API key does not belong to it."""
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

    def _count(self, **counts: int) -> None:
        with self._lock:
            self._counts.update(counts)

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


@dataclass(frozen=True)
class BehaviorJudge:
    """Scores texts by whether they are like the positive or the negative examples of a behavior.

    `LLMJudge.learn` makes it, and `tune` calls that itself.

    Attributes:
        judge: the language model that is asked. It counts the cost.
        positive, negative: example responses.
    """

    judge: LLMJudge
    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """A score from −1 (like the negative examples) to 1 (like the positive ones) for each text.

        Raises:
            MissingVerdictError: the judge gave no valid verdict on a text. The other verdicts are in the cache.
            JudgeError: the judge cannot be asked at all.
        """
        return self.judge.of_each(texts, lambda text: self.judge.judge_behavior(text, self.positive, self.negative))

    @property
    def identity(self) -> str:
        """What tells this judge from others: the model that is asked, and the examples that it is shown."""
        return repr((self.judge, self.positive, self.negative))

    def __str__(self) -> str:
        return repr(self.judge)


def _unit(score: int) -> float:
    """A score of 1 to 5 as 0 to 1."""
    return (score - 1) / 4
