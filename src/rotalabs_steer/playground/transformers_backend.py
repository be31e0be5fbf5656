"""A backend of the playground: a transformers model in this process."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers.generation.streamers import BaseStreamer

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.files.hub import find_vectors
from rotalabs_steer.generation.continuation import continue_rows
from rotalabs_steer.measures.detection import project
from rotalabs_steer.model.decoder import model_name, text_config, transformers_model
from rotalabs_steer.playground.comparisons import Behavior, Snippets
from rotalabs_steer.playground.side_by_side import Turns, write_together
from rotalabs_steer.playground.snippets import curl_snippet, json_snippet, python_snippet
from rotalabs_steer.steering.acting_layers import acting_vectors
from rotalabs_steer.steering.injection import MultiVectorInjector
from rotalabs_steer.steering.interventions import INTERVENTIONS
from rotalabs_steer.steering.vector_checks import check_vectors
from rotalabs_steer.vector_sources import load_vector_sets, set_places

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    import torch
    from torch import nn

    from rotalabs_steer.playground.comparisons import Projections, Request
    from rotalabs_steer.vectors import SteeringVectorSet

_SERVER = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True, eq=False)
class TransformersBackend:
    """A transformers model, and the vector sets of a folder.

    Attributes:
        folders: the folder of each set, by behaviour.
        source: the folder of all sets.
    """

    network: nn.Module
    tokenizer: Any
    sets: Mapping[str, SteeringVectorSet]
    folders: Mapping[str, Path]
    source: Path

    @classmethod
    def open(cls, load_model: Callable[[], tuple[nn.Module, Any]], vectors: str) -> TransformersBackend:
        """Reads one vector set, or a folder of several, and then loads the model, which takes longer.

        Raises:
            OptionError: `vectors` is empty.
            FileNotFoundError: there is nothing at that path.
            VectorError, LayerError, ModelMismatchError, FileFormatError: there are no sets, or none for this model.
        """
        if not vectors.strip():
            raise OptionError("No vectors are named. Make some with: rotalabs-steer tune MODEL --output FOLDER")
        source = find_vectors(vectors.strip()).absolute()
        sets = load_vector_sets(source)
        network, tokenizer = load_model()
        check_vectors(network, acting_vectors(sets.values()))
        return cls(network, tokenizer, sets, dict(zip(sets, set_places(source), strict=True)), source)

    @property
    def chat(self) -> ChatTokenizer:
        """The tokenizer with the options of its chat template."""
        return ChatTokenizer.of(self.tokenizer)

    @property
    def model(self) -> str:
        """The name or path that the model was loaded from."""
        return model_name(self.network)

    @property
    def behaviors(self) -> tuple[Behavior, ...]:
        """One for each set."""
        return tuple(
            Behavior(name, vectors.safe_range, vectors.metadata.get("steers"))
            for name, vectors in sorted(self.sets.items())
        )

    @property
    def interventions(self) -> tuple[str, ...]:
        """All interventions."""
        return tuple(INTERVENTIONS)

    def compare(self, request: Request) -> Generator[tuple[str, ...]]:
        """Yields both answers so far, a token of each in turn.

        Raises:
            OptionError: prompt and answer exceed the model's context, or an option is unknown.
        """
        ids = self.chat.prompt(request.prompt)
        window = getattr(text_config(transformers_model(self.network)), "max_position_embeddings", None)
        if window is not None and len(ids) + request.max_new_tokens > window:
            raise OptionError(
                f"The prompt has {len(ids)} tokens and the answer may have {request.max_new_tokens}; the model's "
                f"context holds {window}. Shorten one of them."
            )
        injectors: list[MultiVectorInjector | None] = [None]
        if request.acting:
            chosen = {name: self.sets[name] for name in request.acting}
            injectors.append(
                MultiVectorInjector(
                    self.network, chosen, request.acting, request.scope, intervention=request.intervention
                )
            )
        turns = Turns(len(injectors), request.seed)
        return write_together(
            [partial(self._write, request, ids, injector, turns, number) for number, injector in enumerate(injectors)]
        )

    def project(self, request: Request, unsteered: str, steered: str) -> Projections:
        """Projects both answers on every behaviour's vector at its deepest acting layer, in one unsteered pass."""
        texts, vectors = [unsteered, steered], [vectors.acting[-1] for vectors in self.sets.values()]
        seen = project(self.network, self.tokenizer, texts, vectors, prompts=[request.prompt] * len(texts))
        rows = [
            tuple(
                dataclasses.replace(text, scores=text.scores[n : n + 1], text_scores=text.text_scores[n : n + 1])
                for text in seen
            )
            for n in range(len(vectors))
        ]
        return {name: (first, second) for name, (first, second) in zip(self.sets, rows, strict=True)}

    def snippets(self, request: Request) -> Snippets:
        """Python for this model and folder; JSON and curl for a server that is started with them."""
        remark = f"For a server that is started with:\nrotalabs-steer serve {self.model} --vectors {self.source}"
        options = self.chat.template_options
        return Snippets(
            python_snippet(request, self.model, self.folders, options),
            json_snippet(request, self.model, options),
            curl_snippet(request, self.model, _SERVER, remark=remark, template_options=options),
        )

    def _write(
        self,
        request: Request,
        ids: tuple[int, ...],
        injector: MultiVectorInjector | None,
        turns: Turns,
        number: int,
        write: Callable[[str], None],
    ) -> None:
        """Generates one of the answers, until it ends or `write` raises."""
        drawn = {"do_sample": True, "temperature": request.temperature} if request.temperature else {}

        def show(written: list[int]) -> None:
            write(self.chat.decode(written).rstrip("\ufffd"))  # a character whose bytes are not complete yet
            turns.give_way(number)

        try:
            turns.begin(number)
            with injector.scoped() if injector is not None else contextlib.nullcontext():
                (row,) = continue_rows(
                    self.network, self.tokenizer, [ids], request.max_new_tokens, streamer=_Streamer(show), **drawn
                )
            write(self.chat.decode(row))
        finally:
            turns.leave(number)


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Calls a function with all tokens so far, after each token."""

    def __init__(self, show: Callable[[list[int]], None]) -> None:
        self._show = show
        self._written: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with each token."""
        if self._written is None:
            self._written = []
        else:
            self._written += value.tolist()
            self._show(self._written)

    def end(self) -> None:
        """Called after the last token."""
