"""Reads activations in a worker process: weighted sums over the tokens of a request, for each layer.

The engine must run eagerly and without prefix caching, so that every layer runs as Python code and sees every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.engines.vllm.layers import local_decoder_layers
from rotalabs_steer.engines.vllm.settings import served_model
from rotalabs_steer.engines.vllm.worker import follow_runner
from rotalabs_steer.errors import ArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float
    from torch import nn

WEIGHTS_ARG = "rotalabs_steer_weights"
"""In `SamplingParams.extra_args`: for each read-out, a weight for every token of the prompt."""
PROBE_ARG = "rotalabs_steer_probe"
"""In `SamplingParams.extra_args`: "plain", then "changed" for the same prompt, each alone in its step."""


class CaptureWorker:
    """Reads the outputs of the decoder layers of one worker.

    A vLLM layer returns either the residual stream or a pair. In most models, the residual stream is the sum of the
    pair. In some models it is the first of the pair, and no later layer reads the second. A probe shows which kind a
    model is: one prompt runs twice, and in the second run, one layer returns another second part of the pair. If this
    changes the output of the next layer, the second part belongs to the residual stream.
    """

    def __init__(self, runner: Any, vllm_config: Any) -> None:
        layers = local_decoder_layers(runner.get_model(), served_model(vllm_config).num_layers)
        self._probed = min(layers)
        self._probe: str | None = None
        self._seen: dict[str, torch.Tensor] = {}
        self._weights: dict[str, Float[torch.Tensor, "readouts tokens"]] = {}
        self._sums: dict[str, dict[int, Float[torch.Tensor, "readouts hidden"]]] = {}
        self._rows: list[tuple[str, int, int, torch.Tensor]] = []
        for index, layer in layers.items():
            layer.register_forward_hook(self._hook(index))
        follow_runner(runner, self._see, self._prepare)

    def take(self) -> dict[str, dict[int, bytes]]:
        """The sums since the last call, by request and layer: `[readouts, hidden]` in fp64.

        They are bytes, because vLLM passes only plain data between its processes.
        """
        found, self._sums, self._weights = self._sums, {}, {}
        return {req: {n: sums.cpu().numpy().tobytes() for n, sums in layers.items()} for req, layers in found.items()}

    def _see(self, scheduler_output: Any) -> None:
        self._probe = None
        for new in scheduler_output.scheduled_new_reqs:
            extra = (new.sampling_params.extra_args if new.sampling_params else None) or {}
            self._probe = extra.get(PROBE_ARG, self._probe)
            if WEIGHTS_ARG in extra:
                self._weights[new.req_id] = torch.tensor(extra[WEIGHTS_ARG], dtype=torch.float32)

    def _prepare(self, req_ids: Sequence[str], tokens: Iterable[int], computed: Iterable[int]) -> None:
        self._rows, begin = [], 0
        for req_id, count, start in zip(req_ids, map(int, tokens), map(int, computed), strict=True):
            weights = self._weights.get(req_id)
            if weights is not None and start < weights.shape[1]:  # generated tokens have no weights
                if start == 0:  # new, or preempted and run again
                    self._sums[req_id] = {}
                part = weights[:, start : start + count]
                self._rows.append((req_id, begin, begin + part.shape[1], part))
            begin += count

    def _hook(self, index: int) -> Any:
        def read(layer: nn.Module, inputs: Any, output: Any) -> Any:
            if self._probe is not None:
                return self._look(index, output)
            if self._rows:
                stream = self._stream(output)
                stream = stream.reshape(-1, stream.shape[-1])
                for req_id, begin, end, weights in self._rows:  # a long prompt comes in several steps, which add up
                    pooled = (weights.to(stream.device) @ stream[begin:end].float()).double()
                    sums = self._sums[req_id]
                    sums[index] = sums[index] + pooled if index in sums else pooled
            return output

        return read

    def _look(self, index: int, output: Any) -> Any:
        assert self._probe is not None
        if index == self._probed + 1:
            self._seen[self._probe] = torch.cat(_halves(output)[:2]).clone()
        if index == self._probed and self._probe == "changed" and len(_halves(output)) > 1:
            hidden, second, *rest = output
            return (hidden, second + second.abs().max(), *rest)
        return output

    def _stream(self, output: Any) -> torch.Tensor:
        halves = _halves(output)
        if len(halves) == 1:
            return halves[0]
        if set(self._seen) != {"plain", "changed"}:
            raise ArchitectureError(
                f"Only layer {self._probed} runs in this process, so it is unclear whether the residual stream is the "
                "sum of what a layer returns. Use fewer pipeline stages."
            )
        is_part = not torch.equal(self._seen["plain"], self._seen["changed"])
        return halves[0] + halves[1] if is_part else halves[0]


def _halves(output: Any) -> tuple[torch.Tensor, ...]:
    given = output if isinstance(output, tuple) else (output,)
    return tuple(half for half in given[:2] if isinstance(half, torch.Tensor))
