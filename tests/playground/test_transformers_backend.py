import pytest
import torch

from playground.conftest import MARKUP, QUESTION
from rotalabs_steer import MultiVectorInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.errors import ModelMismatchError, OptionError, VectorError
from rotalabs_steer.playground.comparisons import Behavior, Request
from rotalabs_steer.playground.transformers_backend import TransformersBackend

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module")
def backend(smollm, tokenizer, vectors):
    return TransformersBackend.open(lambda: (smollm, tokenizer), str(vectors))


def generated(backend, request, injector=None):
    """What `model.generate` writes."""
    inputs = backend.tokenizer.apply_chat_template(
        request.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    drawn = {"do_sample": True, "temperature": request.temperature} if request.temperature else {"do_sample": False}
    torch.manual_seed(request.seed)
    with injector or torch.no_grad():
        output = backend.network.generate(**inputs, max_new_tokens=request.max_new_tokens, **drawn)
    return backend.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(("scope", "intervention"), [("all", "add"), ("generated", "rotate")])
def test_both_answers_are_those_of_generate(backend, temperature, scope, intervention):
    request = Request(QUESTION, {"formality": 1.5, MARKUP: 0.0}, scope, intervention, 16, temperature, seed=5)
    injector = MultiVectorInjector(
        backend.network, {"formality": backend.sets["formality"]}, {"formality": 1.5}, scope, intervention=intervention
    )
    seen = list(backend.compare(request))
    assert seen[-1] == (generated(backend, request), generated(backend, request, injector))
    assert seen[-1][0] != seen[-1][1]
    assert any(first and second and second != seen[-1][1] for first, second in seen), "not side by side"


def test_where_nothing_steers_there_is_one_answer(backend):
    request = Request(QUESTION, {"formality": 0.0}, max_new_tokens=4)
    assert list(backend.compare(request))[-1] == (generated(backend, request),)


def test_the_python_snippet_prints_the_steered_answer(backend, capsys):
    request = Request(QUESTION, {"formality": 1.5}, "generated", "add_keeping_norm", 12, 0.9, seed=5)
    _, steered = list(backend.compare(request))[-1]
    exec(backend.snippets(request).python, {})
    assert capsys.readouterr().out.rstrip("\n") == steered.rstrip("\n")


def test_a_reader_who_leaves_leaves_the_model_as_it_was(backend):
    request = Request(QUESTION, {"formality": 1.5}, max_new_tokens=200)
    answers = backend.compare(request)
    next(answers)
    answers.close()
    again = Request(QUESTION, {}, max_new_tokens=4)
    assert list(backend.compare(again))[-1] == (generated(backend, again),)


def test_tokens_are_seen_by_every_behaviour(backend):
    request = Request(QUESTION, {"formality": 1.0})
    found = backend.project(request, "yo fix it lol", "I would be grateful, Sir.")
    assert set(found) == {"formality", MARKUP}
    casual, formal = found["formality"]
    assert (casual.text, formal.scores.shape[0]) == ("yo fix it lol", 1)
    assert float(formal.text_scores) > float(casual.text_scores)
    assert backend.project(request, "", "")["formality"][0].scores.shape == (1, 0)


def test_behaviours_say_whether_they_were_tuned(backend):
    assert backend.behaviors == (Behavior(MARKUP, None, None), Behavior("formality", (-1.0, 1.0), True))


def test_what_does_not_fit_the_model_is_refused(smollm, tokenizer, tmp_path, backend):
    with pytest.raises(OptionError, match="No vectors are named"):
        TransformersBackend.open(lambda: (smollm, tokenizer), " ")
    with pytest.raises(FileNotFoundError, match="There are no steering vectors at"):
        TransformersBackend.open(lambda: (smollm, tokenizer), str(tmp_path / "nowhere"))
    with pytest.raises(VectorError, match="folder without vector sets"):
        TransformersBackend.open(lambda: (smollm, tokenizer), str(tmp_path))
    other = SteeringVector("calm", 3, torch.ones(576), "meta-llama/Llama-2-7b-chat-hf")
    SteeringVectorSet("calm", [other]).save(tmp_path / "calm")
    with pytest.raises(ModelMismatchError, match="Extract it from this model"):
        TransformersBackend.open(lambda: (smollm, tokenizer), str(tmp_path))
    with pytest.raises(OptionError, match=r"the answer may have 9000; the model's context holds 8192"):
        backend.compare(Request("Hi", {}, max_new_tokens=9000))
