"""Models whose weights accelerate keeps on the CPU or on disk until they are used do all that a plain one does."""

import accelerate
import pytest
import torch

from extraction.test_caa import PAIRS, Letters
from extraction.test_gradients import PAIRS as RENDERED_PAIRS
from rotalabs_steer import ActivationInjector, extract_activations
from rotalabs_steer.extraction import METHODS, read_statistics
from rotalabs_steer.extraction.gradients import pair_gradients
from rotalabs_steer.generation.answers import Sampling, answer_prompts
from rotalabs_steer.generation.continuation import continue_rows
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.measures.propensity import pair_propensities
from rotalabs_steer.model.decoder import input_device
from tiny import make_vector, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8, 9]])
CPU = torch.device("cpu")


def on_cpu(folder):
    return accelerate.cpu_offload(tiny_llama(), execution_device=CPU)


def on_disk(folder):
    return accelerate.disk_offload(tiny_llama(), folder, execution_device=CPU)


def spread(folder):
    """The embeddings and the first layers stay, the others come from disk."""
    places = {f"model.layers.{number}": "cpu" if number < 2 else "disk" for number in range(4)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}
    return accelerate.dispatch_model(tiny_llama(), places, main_device="cpu", offload_dir=folder)


def disk_first(folder):
    """The embeddings come from disk, the layers stay."""
    places = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    return accelerate.dispatch_model(tiny_llama(), places | {"lm_head": "cpu"}, main_device="cpu", offload_dir=folder)


@pytest.fixture(params=[on_cpu, on_disk, spread, disk_first])
def offloaded(request, tmp_path):
    model = request.param(tmp_path)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    return model


def test_inputs_go_where_the_model_runs(offloaded):
    assert input_device(offloaded) == CPU


def test_weights_in_two_places_have_the_inputs_where_the_embeddings_are():
    model = tiny_llama()
    model.model.layers.to("meta")
    assert input_device(model) == CPU
    model.model.embed_tokens.to("meta")
    assert input_device(model) == CPU, "the head is there"


def test_activations_and_steered_logits_are_the_plain_ones(offloaded, llama):
    for layer in (0, 3):
        found = extract_activations(offloaded, {"input_ids": IDS}, [layer], token_position="all")[layer]
        torch.testing.assert_close(
            found, extract_activations(llama, {"input_ids": IDS}, [layer], "residual", "all")[layer]
        )
    vector = make_vector(llama, layer=2)
    for mode in ("all", "first", "last"):
        with ActivationInjector(offloaded, [vector], injection_mode=mode), torch.no_grad():
            found = offloaded(IDS).logits
        with ActivationInjector(llama, [vector], injection_mode=mode), torch.no_grad():
            torch.testing.assert_close(found, llama(IDS).logits)


def test_steered_generation_is_the_plain_one(offloaded, llama, words):
    written = []
    for model in (offloaded, llama):
        with ActivationInjector(model, [make_vector(model)], injection_mode="generated"):
            written.append(continue_rows(model, words, [[5, 6, 7], [8, 9]], 4))
            written.append(answer_prompts(model, words, ["w5 w6"], Sampling(4, temperature=1.0)).texts)
    assert written[:2] == written[2:]


def test_every_method_finds_the_plain_vector(offloaded, llama):
    options = {"methods": list(METHODS), "neutral_texts": ["abc", "defgh"], "show_progress": False}
    found, plain = (read_statistics(model, Letters(), PAIRS, [1], **options) for model in (offloaded, llama))
    for method in METHODS:
        torch.testing.assert_close(found.vectors(method)[1].vector, plain.vectors(method)[1].vector)


def test_measures_and_gradients_are_the_plain_ones(offloaded, llama):
    torch.testing.assert_close(
        pair_gradients(offloaded, RENDERED_PAIRS, [0, 3]), pair_gradients(llama, RENDERED_PAIRS, [0, 3])
    )
    torch.testing.assert_close(pair_propensities(offloaded, RENDERED_PAIRS), pair_propensities(llama, RENDERED_PAIRS))


def test_a_strength_is_calibrated_to_the_plain_one(offloaded, llama, words):
    found = []
    for model in (offloaded, llama):
        probe = CoherenceProbe(model, words, ["w5 w6 w7", "w8 w9"])
        found.append(probe.calibrate(ActivationInjector(model, [make_vector(llama)]), 1.0, budget=0.003).strength)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
