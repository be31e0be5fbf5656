"""What is written into the steering buffers before each step of the engine."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rotalabs_steer.engines.vllm.catalogue import Catalogue
    from rotalabs_steer.engines.vllm.layers import SteeringBuffers
    from rotalabs_steer.engines.vllm.steering import Steering


@dataclass(frozen=True)
class Span:
    """Some tokens of one request in a step.

    Attributes:
        steering: what is added to the request's tokens, if anything.
        prompt_tokens: length of its prompt.
        start: position in the sequence of the first of these tokens.
        tokens: how many there are.
    """

    steering: Steering | None
    prompt_tokens: int
    start: int
    tokens: int


class StepWriter:
    """Keeps the buffers of one worker in step with the batch.

    Each different steering of a batch has a row, in which what it adds at a layer is summed beforehand, so a request
    with ten behaviours costs what an unsteered one costs. A row stays until another steering needs it.
    """

    def __init__(self, catalogue: Catalogue, buffers: SteeringBuffers) -> None:
        self._catalogue, self._buffers = catalogue, buffers
        self._row_of: OrderedDict[str, int] = OrderedDict()
        rows = min((len(table) for table in buffers.tables.values()), default=1)
        self._free = list(range(rows - 1, 0, -1))
        self._written: dict[int, set[int]] = {}
        self._slots = np.zeros(len(buffers.slots), dtype=np.int64)
        self._used = 0

    @property
    def catalogue(self) -> Catalogue:
        """Where vectors are looked up."""
        return self._catalogue

    @catalogue.setter
    def catalogue(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def write(self, batch: Sequence[Span]) -> None:
        """Puts the row of every token of the step into the slots; `batch` is in the order of the step's tokens."""
        if not self._buffers.tables:  # a pipeline stage without a steered layer
            return
        steered = {span.steering.key: span.steering for span in batch if span.steering is not None}
        if not steered and not self._used:
            return
        rows = self._rows(steered)
        slots = self._slots
        slots[: self._used] = 0
        begin = end = 0
        for span in batch:
            if span.steering is not None:
                first, last = span.steering.covered(span.prompt_tokens, span.start, span.start + span.tokens)
                slots[begin + first - span.start : begin + last - span.start] = rows[span.steering.key]
                end = begin + span.tokens
            begin += span.tokens
        self._copy(max(self._used, end))
        self._used = end

    def _copy(self, tokens: int) -> None:
        """To the device. A fresh pinned tensor each time: the device may still be reading the one before."""
        host = torch.from_numpy(self._slots[:tokens])
        on_cpu = self._buffers.slots.device.type == "cpu"
        self._buffers.slots[:tokens].copy_(host if on_cpu else host.pin_memory(), non_blocking=True)

    def _rows(self, steered: dict[str, Steering]) -> dict[str, int]:
        for key in steered.keys() & self._row_of.keys():
            self._row_of.move_to_end(key)
        for key, steering in steered.items():
            if key not in self._row_of:
                deltas = self._catalogue.deltas(steering)  # before a row is taken: what cannot be had must not be zeros
                self._row_of[key] = row = self._free.pop() if self._free else self._row_of.popitem(last=False)[1]
                self._write_row(row, deltas)
        return {key: self._row_of[key] for key in steered}

    def _write_row(self, row: int, deltas: Mapping[int, torch.Tensor]) -> None:
        for layer, table in self._buffers.tables.items():
            if layer in deltas:
                table[row].copy_(deltas[layer])
            elif row in self._written.get(layer, ()):
                table[row].zero_()
        for layer in self._buffers.tables:
            rows = self._written.setdefault(layer, set())
            (rows.add if layer in deltas else rows.discard)(row)
