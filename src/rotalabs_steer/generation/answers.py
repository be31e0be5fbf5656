"""Answers to any number of prompts, in batches, with the time they took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from rotalabs_steer.arguments import as_integer, as_real, list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.generation.continuation import continue_rows
from rotalabs_steer.model.decoder import input_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt


@dataclass(frozen=True)
class Sampling:
    """How answers are generated.

    Attributes:
        max_new_tokens: the maximum number of new tokens in each answer.
        temperature: 0 means greedy decoding. Above 0, tokens are sampled, starting at `seed` for each set of prompts.
        batch_size: how many prompts are answered at once.
        system_prompt: a system message that goes before every prompt.

    Raises:
        OptionError: a number is out of range.
    """

    max_new_tokens: int = 150
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 16
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        most, size, seed = as_integer(self.max_new_tokens), as_integer(self.batch_size), as_integer(self.seed)
        temperature = as_real(self.temperature)
        if most is None or most < 1 or size is None or size < 1 or temperature is None or temperature < 0:
            raise OptionError(
                "max_new_tokens and batch_size must be integers from 1 on and temperature a number from 0 on, got "
                f"{self.max_new_tokens!r}, {self.batch_size!r} and {self.temperature!r}."
            )
        if seed is None or seed < 0:
            raise OptionError(f"seed is {self.seed!r:.80}; it must be an integer from 0 on.")
        numbers = {"max_new_tokens": most, "batch_size": size, "temperature": temperature, "seed": seed}
        for name, number in numbers.items():
            object.__setattr__(self, name, number)


@dataclass(frozen=True)
class TimedAnswers:
    """The answers to some prompts, in their order.

    Attributes:
        texts: what the model wrote, without the prompts.
        tokens: number of generated tokens of each.
        seconds: for each, the wall time of its batch, which is how long a user waits for it.
        total_seconds: wall time of all batches.
    """

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    total_seconds: float

    @property
    def latency_ms(self) -> float | None:
        """Mean wait for an answer in milliseconds; None if there are no answers."""
        return 1000 * sum(self.seconds) / len(self.seconds) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens per second, over all batches; None if there are no answers."""
        return sum(self.tokens) / self.total_seconds if self.texts else None


def answer_prompts(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling | None = None,
    *,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = False,
    description: str = "answering",
) -> TimedAnswers:
    """The answers of the model, as it is steered now. Prompts of similar length are answered together.

    Args:
        prompts: texts, or conversations as lists of messages.
        template_options: options of the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: `prompts` is one string, or the template does not know an option.
        ChatTemplateError, DatasetError: a prompt cannot be rendered as a chat; the model has not run.
    """
    prompts = list_of("prompts", prompts)
    sampling = sampling or Sampling()
    chat = ChatTokenizer.of(tokenizer, template_options)
    asked = [chat.prompt(prompt, sampling.system_prompt) for prompt in prompts]
    order = sorted(range(len(asked)), key=lambda index: len(asked[index]))
    batches = [order[start : start + sampling.batch_size] for start in range(0, len(order), sampling.batch_size)]
    options = {"do_sample": True, "temperature": sampling.temperature} if sampling.temperature else {}
    texts, tokens, seconds = [""] * len(prompts), [0] * len(prompts), [0.0] * len(prompts)
    total = 0.0
    device = input_device(model)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        tqdm(total=len(prompts), desc=description, unit="prompt", disable=not show_progress, leave=False) as progress,
    ):
        torch.manual_seed(sampling.seed)
        for batch in batches:
            start = time.perf_counter()
            rows = continue_rows(model, chat, [asked[index] for index in batch], sampling.max_new_tokens, **options)
            taken = time.perf_counter() - start
            total += taken
            for index, row in zip(batch, rows, strict=True):
                texts[index] = chat.decode(row).strip()
                tokens[index], seconds[index] = len(row), taken
            progress.update(len(batch))
    return TimedAnswers(tuple(texts), tuple(tokens), tuple(seconds), total)


def generate_response(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    max_new_tokens: int = 150,
    temperature: float = 0.0,
    system_prompt: str | None = None,
    *,
    seed: int = 0,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """The model's answer to one prompt.

    Args:
        prompt: a text, or a conversation as a list of messages.
        temperature: 0 is greedy decoding.
        seed: for a temperature above 0; the state of torch's generators is restored afterwards.
        template_options: options of the chat template, as in `{"enable_thinking": False}`.

    Raises:
        ChatTemplateError, DatasetError: the prompt cannot be rendered as a chat.
        OptionError: a number is out of range, or the template does not know an option.
    """
    sampling = Sampling(max_new_tokens, temperature, seed, 1, system_prompt)
    return answer_prompts(model, tokenizer, [prompt], sampling, template_options=template_options).texts[0]
