"""What steering costs: one hook call, and whole generations.

    python benchmarks/overhead.py

Peers are measured where they are installed (pip install --no-deps steering-vectors repeng scikit-learn).
All variants run in turn, many times, in one process; printed are medians and the ratio to a bare `hidden + vector` hook
(hook calls) or to the unsteered model (generations).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rotalabs_steer import ActivationInjector, MultiVectorInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.sample_model import sample_model_path

Call = Callable[[torch.Tensor], object]
LAYER = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds of hook calls")
    parser.add_argument("--widths", type=int, nargs="+", default=[576, 4096], help="hidden sizes")
    parser.add_argument("--generations", type=int, default=5, help="interleaved rounds of generations; 0 to skip")
    options = parser.parse_args()
    torch.set_num_threads(2)
    for width in options.widths:
        for batch, columns in ((1, 1), (8, 1), (1, 512)):
            hook_calls(width, batch, columns, options.rounds)
    if options.generations:
        generations(options.generations)
        generations(options.generations, compiled=True)


def hook_calls(width: int, batch: int, columns: int, rounds: int) -> None:
    """Times each variant's hook on `[batch, columns, width]`, inside a forward call of a model of its own."""
    hidden = torch.randn(batch, columns, width)
    ids = torch.ones(batch, columns, dtype=torch.long)
    repeats = max(10, min(2000, 4_000_000 // hidden.numel()))
    times: dict[str, list[float]] = {}
    with ExitStack() as stack, torch.no_grad():
        models = {}
        for name, attach in VARIANTS.items():
            model = small_model(width)
            try:
                call = stack.enter_context(attach(model, torch.randn(10, width)))
            except (ImportError, AttributeError) as error:  # repeng 0.4 needs NumPy 1
                print(f"({name} cannot be imported: {error})")
                continue
            models[name] = model
            times[name] = []
            model.model.layers[0].register_forward_hook(stopwatch(call, hidden, repeats, times[name]))
        for _ in range(rounds):
            for model in models.values():
                model(ids)
    bare = statistics.median(times["bare hook"])
    print(f"\nhook call on [{batch}, {columns}, {width}]")
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"  {name:32} {median * 1e6:9.1f} µs   {median / bare:6.2f} × bare")


def stopwatch(call: Call, hidden: torch.Tensor, repeats: int, times: list[float]) -> Callable[..., None]:
    """A hook that times `call` while its model runs."""

    def measure(*_: object) -> None:
        started = time.perf_counter()
        for _ in range(repeats):
            call(hidden)
        times.append((time.perf_counter() - started) / repeats)

    return measure


def registered_hook(model: LlamaForCausalLM) -> Call:
    """What is registered on the steered layer, as torch would call it."""
    layer = model.model.layers[LAYER]
    (hook,) = layer._forward_hooks.values()
    return lambda hidden: hook(layer, (), hidden)


@contextmanager
def bare_hook(model: LlamaForCausalLM, vectors: torch.Tensor) -> Iterator[Call]:
    vector = vectors[0].clone()
    model.model.layers[LAYER].register_forward_hook(lambda _, __, output: output + vector)
    yield registered_hook(model)


@contextmanager
def one_vector(model: LlamaForCausalLM, vectors: torch.Tensor) -> Iterator[Call]:
    with ActivationInjector(model, [SteeringVector("one", LAYER, vectors[0], "small")]):
        yield registered_hook(model)


@contextmanager
def ten_behaviors(model: LlamaForCausalLM, vectors: torch.Tensor) -> Iterator[Call]:
    named = [SteeringVector(str(number), LAYER, vector, "small") for number, vector in enumerate(vectors)]
    with MultiVectorInjector(model, {one.behavior: SteeringVectorSet(one.behavior, [one]) for one in named}):
        yield registered_hook(model)


@contextmanager
def with_steering_vectors(model: LlamaForCausalLM, vectors: torch.Tensor) -> Iterator[Call]:
    import steering_vectors

    with steering_vectors.SteeringVector({LAYER: vectors[0]}).apply(model):
        yield registered_hook(model)


@contextmanager
def with_repeng(model: LlamaForCausalLM, vectors: torch.Tensor) -> Iterator[Call]:
    import repeng

    control = repeng.ControlModel(model, [LAYER])
    control.set_control(repeng.ControlVector(model_type="llama", directions={LAYER: vectors[0].numpy()}))
    wrapped = model.model.layers[LAYER]
    wrapped.block = torch.nn.Identity()  # the layer itself is not what is measured
    positions = torch.arange(512)[None]
    yield lambda hidden: wrapped(hidden, position_ids=positions[:, : hidden.shape[1]])


VARIANTS = {
    "bare hook": bare_hook,
    "rotalabs-steer, one vector": one_vector,
    "rotalabs-steer, ten behaviours": ten_behaviors,
    "steering-vectors": with_steering_vectors,
    "repeng": with_repeng,
}


def generations(rounds: int, *, compiled: bool = False) -> None:
    """Whole generations of SmolLM2-135M, steered against unsteered, in turn: plain, or compiled with a static cache."""
    model = AutoModelForCausalLM.from_pretrained(sample_model_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(sample_model_path())
    settings = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False}
    if compiled:
        model.compile(dynamic=False)
        settings["cache_implementation"] = "static"
    vector = SteeringVector("any", 14, torch.randn(576), "SmolLM2")
    for batch in (1, 8):
        inputs = tokenizer(["The harbour was empty that morning, and"] * batch, return_tensors="pt")
        ratios = []
        for number in range(rounds + 1):
            times = []
            for strength in (None, 1.0):
                with ExitStack() as stack:
                    if strength is not None:
                        stack.enter_context(ActivationInjector(model, [vector], strength))
                    started = time.perf_counter()
                    model.generate(**inputs, **settings)
                    times.append(time.perf_counter() - started)
            if number > 0:  # the first round compiles
                ratios.append(times[1] / times[0])
        kind = ", compiled, static cache" if compiled else ""
        print(
            f"\ngenerate{kind}, SmolLM2-135M, batch {batch}: steered / unsteered "
            f"{statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f}, {rounds} pairs)"
        )


def small_model(width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


if __name__ == "__main__":
    main()
