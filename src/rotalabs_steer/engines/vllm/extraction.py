"""Extraction with vLLM, for models that need an engine on several devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.pairs import as_dataset
from rotalabs_steer.engines.vllm.capture import PROBE_ARG, WEIGHTS_ARG
from rotalabs_steer.engines.vllm.settings import CONFIG_KEY, SteeringSettings, served_model
from rotalabs_steer.errors import ActivationError, LayerError, OptionError, missing_dependency
from rotalabs_steer.extraction.extract import ActivationStatistics, render_pairs
from rotalabs_steer.extraction.methods import DEFAULT_METHOD, get_method
from rotalabs_steer.extraction.pair_texts import PairTexts, side_name
from rotalabs_steer.extraction.statistics import SAMPLES, PairSums

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jaxtyping import Float

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.vectors import SteeringVectorSet

_PAIRS_PER_CALL = 64
_PROBE_TOKENS = [1, 2, 3, 4]


def extraction_engine(model: str, **options: Any) -> Any:
    """A `vllm.LLM` to extract from. It takes the options of `vllm.LLM`, such as `tensor_parallel_size` and `dtype`.

    Raises:
        MissingDependencyError: vLLM is not installed.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise missing_dependency("Extraction with vLLM", "vllm", error) from error
    needed = {
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "additional_config": {CONFIG_KEY: {"capture": True}},
    }
    return LLM(model=model, **options | needed)


def extract_vectors(
    llm: Any,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    layer_indices: Iterable[int] | None = None,
    *,
    method: str = DEFAULT_METHOD,
    token_position: Readout | None = None,
    truncate: bool = False,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> SteeringVectorSet:
    """Steering vectors like those of `rotalabs_steer.extraction.extract_vectors`, from an `extraction_engine`.

    Args:
        layer_indices: 0-based decoder layers; None for all.
        method: a method that needs neither gradients nor neutral texts.
        template_options: for the chat template, as in `{"enable_thinking": False}`; the vectors record them.

    Raises:
        OptionError: the engine was not made by `extraction_engine`, or the method needs more than activations.
        DatasetError, ChatTemplateError, LayerError: the input cannot be used; the model has not run.
        ActivationError: an activation is not finite; layer and text are named.
    """
    settings = SteeringSettings.of(llm.llm_engine.vllm_config)
    if settings is None or not settings.capture:
        raise OptionError("This engine does not read activations. Make it with extraction_engine(MODEL).")
    needs = get_method(method).needs
    if needs - {SAMPLES}:
        raise OptionError(f"Method {method!r} needs {', '.join(sorted(needs))}, which vLLM cannot give.")
    model = served_model(llm.llm_engine.vllm_config)
    layers = list(range(model.num_layers) if layer_indices is None else layer_indices)
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(model.num_layers)):
        raise LayerError(f"Layers {layers}: name each once, from 0 to {model.num_layers - 1} ({model.name}).")
    dataset = as_dataset(contrast_pairs)
    chat = ChatTokenizer.of(llm.get_tokenizer(), template_options)
    longest = llm.llm_engine.vllm_config.model_config.max_model_len - 1  # vLLM generates one token
    texts = PairTexts(render_pairs(chat, dataset, longest, truncate=truncate), [token_position])
    (position,) = texts.position_names
    sums = {position: PairSums(len(layers), model.hidden_size, texts.num_pairs, needs)}
    for kind in ("plain", "changed"):  # shows the workers what their layers return; see `CaptureWorker`
        _run(llm, [_PROBE_TOKENS], [{PROBE_ARG: kind}], show_progress=False)
    llm.collective_rpc("steering_take")
    # One call for all texts would keep the activations of all of them in the workers' memory.
    for start in range(0, len(texts.ids), 2 * _PAIRS_PER_CALL):
        chunk = range(start, min(start + 2 * _PAIRS_PER_CALL, len(texts.ids)))
        texts.add(sums, chunk, _read(llm, texts, chunk, layers, show_progress=show_progress))
    found = {layer: sums[position].layer(place, layer) for place, layer in enumerate(layers)}
    statistics = ActivationStatistics(
        dataset.behavior,
        {("residual", position): found},
        model.name,
        dict(model.fingerprint),
        dataset.sha256,
        chat.template_options,
    )
    return statistics.vectors(method)


def _read(
    llm: Any, texts: PairTexts, chunk: Sequence[int], layers: Sequence[int], *, show_progress: bool
) -> Float[torch.Tensor, "places positions texts hidden"]:
    extra = [{WEIGHTS_ARG: [weights.tolist() for weights in texts.weights(index)]} for index in chunk]
    outputs = _run(llm, [list(texts.ids[index]) for index in chunk], extra, show_progress=show_progress)
    by_request: dict[str, dict[int, torch.Tensor]] = {}
    # Each tensor-parallel worker has all layers, and each pipeline stage has its own.
    for worker in llm.collective_rpc("steering_take"):
        for req_id, found in worker.items():
            sums = {n: torch.frombuffer(bytearray(raw), dtype=torch.float64) for n, raw in found.items()}
            request_id = req_id.rpartition("-")[0] or req_id  # the engine adds a random part to the id that LLM gave
            by_request.setdefault(request_id, {}).update(sums)
    read = []
    for index, output in zip(chunk, outputs, strict=True):
        at = by_request[output.request_id]
        for layer in layers:
            if not bool(torch.isfinite(at[layer]).all()):
                raise ActivationError(
                    f"The activations of {side_name(index)} at layer {layer} are NaN or infinite. Load the model "
                    "in float32 or bfloat16 (float16 overflows on some models)."
                )
        positions = len(texts.position_names)
        read.append(torch.stack([torch.unflatten(at[layer], 0, (positions, -1)) for layer in layers]))
    return torch.stack(read, dim=2)


def _run(llm: Any, prompts: list[list[int]], extra: list[dict[str, Any]], *, show_progress: bool) -> Any:
    from vllm import SamplingParams

    params = [SamplingParams(max_tokens=1, detokenize=False, extra_args=args) for args in extra]
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=show_progress)
