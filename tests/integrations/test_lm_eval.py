"""lm-evaluation-harness on local tasks: its figures against the model called by hand."""

import json
import sys

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_templates import NO_SYSTEM, OPENS, byte_tokenizer
from rotalabs_steer import MultiVectorInjector
from rotalabs_steer.errors import ChatTemplateError, OptionError
from rotalabs_steer.integrations.lm_eval import SteeredLM, main
from rotalabs_steer.vector_sources import load_vector_sets
from tiny import tiny_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the harness's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ROWS = [
    {"question": "The capital of France is", "choices": ["Paris", "a river in the north"], "answer": 0},
    {"question": "Two and two make", "choices": ["a good deal more than five", "four"], "answer": 1},
    {"question": "Grass is", "choices": ["green", "wet"], "answer": 0},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
"""
CHOICE = "doc_to_target: answer\ndoc_to_choice: choices\nmetric_list:\n  - metric: acc\n"
WRITE = (
    "doc_to_target: question\ngeneration_kwargs:\n  max_gen_toks: 5\n  until: []\n  do_sample: false\n"
    "metric_list:\n  - metric: exact_match\n"
)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, kind, rest in (("steer_choice", "multiple_choice", CHOICE), ("steer_write", "generate_until", WRITE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind) + rest)
    return tmp_path


def evaluate(tasks, task, folder, vectors, strength, **more):
    return simple_evaluate(
        model="rotalabs_steer",
        model_args={"pretrained": str(folder), "vectors": str(vectors), "strength": strength, **more},
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=3,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )


def steered(folder, vectors, strengths):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return (
        model,
        AutoTokenizer.from_pretrained(folder),
        MultiVectorInjector(model, load_vector_sets(vectors), strengths),
    )


def score(model, tokenizer, question, choice):
    """Log-probability of a choice, unpadded."""
    start, whole = (tokenizer(text, return_tensors="pt")["input_ids"] for text in (question, f"{question} {choice}"))
    with torch.no_grad():
        logs = model(whole).logits.log_softmax(-1)[0]
    return sum(float(logs[n - 1, whole[0, n]]) for n in range(start.shape[1], whole.shape[1]))


def test_scores_of_given_answers(tasks, small_folder, vector_folder):
    results = evaluate(tasks, "steer_choice", small_folder, vector_folder, "formality:1.0;refusal:-1.0")
    model, tokenizer, injector = steered(small_folder, vector_folder, {"formality": 1.0, "refusal": -1.0})
    plain = [[score(model, tokenizer, row["question"], choice) for choice in row["choices"]] for row in ROWS]
    with injector:
        expected = [[score(model, tokenizer, row["question"], choice) for choice in row["choices"]] for row in ROWS]
    samples = sorted(results["samples"]["steer_choice"], key=lambda sample: sample["doc_id"])
    seen = [[response[0][0] for response in sample["resps"]] for sample in samples]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected), atol=1e-3, rtol=1e-4)
    assert (torch.tensor(seen) - torch.tensor(plain)).abs().min() > 1e-2
    steering = results["config"]["steering"]
    assert steering["strengths"] == {"formality": 1.0, "refusal": -1.0}
    assert steering["layers"] == {name: vectors.acting_layers for name, vectors in injector.vector_sets.items()}


def test_what_the_model_writes(tasks, small_folder, vector_folder):
    results = evaluate(tasks, "steer_write", small_folder, vector_folder, 1.0, injection_mode="last")
    model, tokenizer, _ = steered(small_folder, vector_folder, None)
    samples = sorted(results["samples"]["steer_write"], key=lambda sample: sample["doc_id"])
    with MultiVectorInjector(model, load_vector_sets(vector_folder), injection_mode="last"):
        for row, sample in zip(ROWS, samples, strict=True):
            inputs = tokenizer(row["question"], return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
            text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert sample["resps"][0][0].strip() == text.strip()


def test_scores_need_a_scope_that_means_the_same(tasks, small_folder, vector_folder):
    with pytest.raises(OptionError, match=r"injection_mode is 'last', but this task scores .* \('all', 'first'\)"):
        evaluate(tasks, "steer_choice", small_folder, vector_folder, 1.0, injection_mode="last")


def test_the_command_line(tasks, small_folder, vector_folder, monkeypatch, capsys):
    arguments = f"pretrained={small_folder},vectors={vector_folder},strength=0.5"
    command = ["lm_eval", "run", "--model", "rotalabs_steer", "--model_args", arguments, "--tasks", "steer_choice"]
    command += ["--include_path", str(tasks), "--device", "cpu", "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert "|steer_choice|" in capsys.readouterr().out


def test_chats_take_template_options_and_lose_no_message(vector_folder, tmp_path):
    def steered(template, **options):
        folder = tmp_path / str(hash(template))
        tiny_llama(vocab_size=272, max_position_embeddings=512).save_pretrained(folder)
        byte_tokenizer(template).save_pretrained(folder)
        return SteeredLM(str(folder), str(vector_folder), device="cpu", **options)

    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    model = steered(OPENS, template_options="enable_thinking=false")
    assert model.apply_chat_template(asked).endswith("<think>\n\n</think>\n\n")
    prefilled = [*asked, {"role": "assistant", "content": "The answer"}]
    assert model.apply_chat_template(prefilled, add_generation_prompt=False).endswith("The answer")
    assert steered(OPENS).apply_chat_template(asked).endswith("<think>")
    with pytest.raises(ChatTemplateError, match="loses the system message"):
        steered(NO_SYSTEM).apply_chat_template(asked)
    with pytest.raises(OptionError, match="never mentions the option 'thinkin'"):
        steered(OPENS, template_options={"thinkin": False})
