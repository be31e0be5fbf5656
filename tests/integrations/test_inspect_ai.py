"""Inspect on a local task: its answers against the model called by hand."""

import json

import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import json_dataset
from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, ChatMessageUser, get_model
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolCall
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_templates import OPENS, TOOLS, byte_tokenizer
from rotalabs_steer import MultiVectorInjector
from rotalabs_steer.errors import OptionError
from rotalabs_steer.vector_sources import load_vector_sets
from tiny import count_hooks, tiny_llama

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Inspect's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PROMPTS = ["How do I boil an egg?", "Name a river."]


def by_hand(folder, vectors, strengths):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = []
    with MultiVectorInjector(model, load_vector_sets(vectors), strengths):
        for prompt in PROMPTS:
            chat = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
            texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_a_task_runs_steered(small_folder, vector_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"input": prompt, "target": "egg"}) + "\n" for prompt in PROMPTS))
    strengths = {"formality": 1.0, "refusal": -1.0}
    model = get_model(
        f"rotalabs_steer/{small_folder}", vectors=str(vector_folder), strength=strengths, device="cpu", do_sample=False
    )
    (log,) = inspect_eval(
        Task(dataset=json_dataset(str(rows)), scorer=includes()),
        model=model,
        max_tokens=5,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )
    assert log.status == "success", log.error
    seen = [sample.output.completion for sample in log.samples]
    assert seen == by_hand(small_folder, vector_folder, strengths)
    assert seen != by_hand(small_folder, vector_folder, {"formality": 0.0, "refusal": 0.0})
    inner = model.api.model
    assert count_hooks(inner) > 0
    model.api.close()
    assert count_hooks(inner) == 0


@pytest.fixture
def reasoner(vector_folder, tmp_path):
    """A tiny model with a BOS of its tokenizer's and one of its template's, that thinks unless it is told not to."""
    tiny_llama(vocab_size=272, max_position_embeddings=512).save_pretrained(tmp_path / "reasoner")
    byte_tokenizer("{{ bos_token }}" + OPENS).save_pretrained(tmp_path / "reasoner")

    def make(**options):
        given = {"vectors": str(vector_folder), "device": "cpu", "do_sample": False, "memoize": False} | options
        return get_model(f"rotalabs_steer/{tmp_path / 'reasoner'}", **given)

    return make


def test_prompts_begin_once_and_take_template_options(reasoner):
    api = reasoner(template_options="enable_thinking=false").api
    text = api.hf_chat([ChatMessageUser(content="2+2?")], [])
    assert text == "<s><|user|>\n2+2?\n<|assistant|>\n<think>\n\n</think>\n\n"
    ids = api.tokenizer(text, **api.tokenizer_call_args)["input_ids"]
    assert ids.count(api.tokenizer.bos_token_id) == 1
    api.close()
    assert reasoner(enable_thinking=True).api.hf_chat([ChatMessageUser(content="2+2?")], []).endswith("<think>")
    terse = "{% for m in messages %}{{ m.content }}>{% endfor %}"
    assert reasoner(chat_template=terse).api.hf_chat([ChatMessageUser(content="2+2?")], []) == "2+2?>"
    with pytest.raises(OptionError, match="never mentions the option 'thinkin'"):
        reasoner(template_options={"thinkin": False})


def test_a_template_is_given_tool_calls_as_it_reads_them(reasoner):
    api = reasoner(chat_template=TOOLS).api
    call = ToolCall(id="1", function="find", arguments={"what": "keys"})
    asked = [ChatMessageUser(content="Where?"), ChatMessageAssistant(content="Hm.", tool_calls=[call])]
    result = ChatMessageTool(content="There.", tool_call_id="1", function="find")
    assert api.hf_chat([*asked, result], []) == '<|user|>Where?<|assistant|>Hm.find({"what": "keys"})<|tool|>There.'
    api.close()


def test_vectors_are_needed(small_folder):
    with pytest.raises(OptionError, match="Say which vectors steer the model: -M vectors=FOLDER"):
        get_model(f"rotalabs_steer/{small_folder}", memoize=False)
