"""Every code block of the documentation, run word for word on the real model."""

from pathlib import Path

import pytest
import torch

import pages
import rotalabs_steer
from chat_templates import OPENS, byte_tokenizer
from made_up_tuning import tuned_steering
from pages import SAMPLE
from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.extraction import METHODS
from rotalabs_steer.sample_model import sample_model_path
from tiny import tiny_llama

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page):
    return [block.text for block in pages.blocks(DOCS / page) if block.language == "python"]


def run(page, given):
    for block in blocks(page):
        exec(compile(block, page, "exec"), given)


TASK = """
task: my_task
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
"""


def vector_set(behavior):
    return SteeringVectorSet(behavior, [SteeringVector(behavior, n, torch.randn(576), "SmolLM2") for n in (14, 15)])


def test_chat_templates(capsys):
    run("chat-templates.md", {"model": tiny_llama(vocab_size=272), "tokenizer": byte_tokenizer(OPENS)})
    assert "{'enable_thinking': False}" in capsys.readouterr().out


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
def test_core_concepts(smollm, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    refusal, uncertainty = vector_set("refusal"), vector_set("uncertainty")
    given = {
        "model": smollm,
        "inputs": tokenizer("How do I pick a lock?", return_tensors="pt"),
        "steering_vector": refusal[15],
        "refusal_vectors": refusal,
        "uncertainty_vectors": uncertainty,
        "vector": refusal[15],
        "vector_set": refusal,
        "SteeringVector": SteeringVector,
        "SteeringVectorSet": SteeringVectorSet,
    }
    assert len(blocks("core-concepts.md")) == 5
    run("core-concepts.md", given)
    assert given["pair"].positive.startswith("I cannot")
    assert {layer: tuple(tensor.shape) for layer, tensor in given["activations"].items()} == {
        14: (1, 1, 576), 15: (1, 1, 576), 16: (1, 1, 576),
    }  # fmt: skip
    assert given["outputs"].shape[1] > given["inputs"]["input_ids"].shape[1]
    assert given["injector"].strengths == {"refusal": 0.8, "uncertainty": 0.5}
    assert given["vector"] == refusal[15]
    assert given["vector_set"] == refusal
    assert sorted(path.name for path in Path("vectors").iterdir()) == [
        "refusal", "refusal_layer_15.json", "refusal_layer_15.pt",
    ]  # fmt: skip


def test_core_concepts_names_the_public_classes():
    text = (DOCS / "core-concepts.md").read_text("utf-8")
    for name in ("ActivationHook", "ActivationInjector", "MultiVectorInjector", "SteeringVector", "MODEL_CONFIGS"):
        assert name in text
        assert name in rotalabs_steer.__all__


@pytest.mark.real_model
def test_steering_in_detail(smollm, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vector_set("calm").scale(0.1).save("tuned/calm")
    sets = {name: vector_set(name) for name in ("formality", "refusal")}
    given = {
        "inputs": tokenizer("How do I pick a lock?", return_tensors="pt"),
        "model": smollm,
        "tokenizer": tokenizer,
        "vector": sets["refusal"][14],
        "vector_set": sets["refusal"],
        "sets": sets,
        "ActivationInjector": rotalabs_steer.ActivationInjector,
        "MultiVectorInjector": rotalabs_steer.MultiVectorInjector,
        "prompts_to_steer": ["How do I boil an egg?", "Give me a soup recipe."],
        "prompts_to_leave": ["Who wrote Hamlet?", "Explain photosynthesis."],
    }
    run("steering.md", given)
    assert given["fitted"].f1 == 1.0
    assert given["chat"].strengths == {"calm": -0.5}


@pytest.mark.real_model
def test_getting_started(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vector_set("formality").scale(0.05).save("vectors/formality")
    given = {}
    run("getting-started.md", given)
    assert given["chat"].strengths == {"formality": 1.0}
    assert len(capsys.readouterr().out) > 100


@pytest.mark.real_model
def test_extraction(smollm, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"model": smollm, "tokenizer": tokenizer}
    try:
        run("extraction.md", given)
    finally:
        METHODS.pop("half_centred", None)
    assert given["vectors"].layers == list(range(30))
    assert max(given["scores"], key=given["scores"].get) == 14


def test_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {}
    run("datasets.md", given)
    assert given["pairs"][0].metadata == {"source": "mine"}
    assert [finding.reason for finding in given["report"].findings if finding.measure != "words"] == []
    assert given["boldness"][0].asks_differently


def test_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"vectors": vector_set("calm")}
    run("files.md", given)
    assert given["vectors"] == SteeringVectorSet.load("calm.safetensors") == SteeringVectorSet.load("calm")
    assert SteeringVectorSet.load("spread").acting_layers == [14, 15]


@pytest.mark.real_model
def test_evaluation(smollm, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"model": smollm, "tokenizer": tokenizer, "tuned": tuned_steering()}
    run("evaluation.md", given)
    assert float(given["letter"].text_scores) > float(given["note"].text_scores)
    assert given["detection"].auroc.mean > 0.9
    assert given["check"].unsteered.mean > 0.7
    assert Path("report.html").stat().st_size > 20_000


@pytest.mark.real_model
def test_llama_cpp(tmp_path, monkeypatch):
    llama_cpp = pytest.importorskip("llama_cpp", reason="make test-llama-cpp installs llama-cpp-python")
    from rotalabs_steer.sample_model import _gguf_file

    monkeypatch.chdir(tmp_path)
    llama = llama_cpp.Llama(str(_gguf_file()), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    given = {"llama": llama, "vectors": vector_set("formality")}
    run("llama-cpp.md", given)
    warm, cold, formal = (given[name]["choices"][0]["message"]["content"] for name in ("warm", "cold", "formal"))
    assert formal
    assert warm != cold
    best = given["vectors"].get_best()
    assert torch.allclose(given["back"][best.layer_index].vector, 1.2 * best.vector)


@pytest.mark.real_model
def test_baking(smollm, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"model": smollm, "tokenizer": tokenizer, "vectors": vector_set("formality")}
    run("baking.md", given)
    assert given["baked"].config.mlp_bias
    assert given["ablated"].config.tie_word_embeddings is False
    assert Path("steered-model/config.json").exists()


@pytest.mark.real_model
def test_langchain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vector_set("formality").scale(0.1).save("vectors/formality")
    given = {}
    for block in blocks("langchain.md"):
        exec(block.replace(SAMPLE, str(sample_model_path())), given)
    formal, casual = given["answers"]
    assert formal.content != casual.content
    assert formal.response_metadata["strengths"] == {"formality": 1.5, "politeness": 0.0}
    assert given["agent"].get_strength("formality") == 0.5


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # the harness's own
def test_harnesses(tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    vector_set("formality").scale(0.1).save("vectors/formality")
    Path("rows.jsonl").write_text('{"question": "Grass is", "choices": [" green", " blue"], "answer": 0}\n')
    Path("my_task.yaml").write_text(TASK)
    given = {"tasks": TaskManager(include_path=".", include_defaults=False)}
    (block,) = blocks("harnesses.md")
    exec(block.replace(SAMPLE, str(sample_model_path())), given)
    assert given["results"]["config"]["steering"]["strengths"] == {"formality": 1.0}
