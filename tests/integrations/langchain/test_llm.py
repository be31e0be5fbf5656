"""The plain-text model against the model generated from by hand."""

import asyncio

import pytest
from langchain_core.caches import InMemoryCache

from chat_templates import byte_tokenizer
from rotalabs_steer import MultiVectorInjector
from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.langchain import SteeredChatModel, SteeredLLM
from tiny import make_vector, tiny_llama

PROMPTS = ["The capital of France is", "Once upon a time there was", "The capital of France is"]
STRENGTHS = [{"formality": 0.0}, {"formality": 1.5}, {"refusal": -1.5}]
CONFIGS = [{"configurable": {"strengths": strengths}} for strengths in STRENGTHS]


@pytest.fixture
def expected(llm, sets):
    texts = []
    for prompt, strengths in zip(PROMPTS, STRENGTHS, strict=True):
        inputs = llm.tokenizer(prompt, return_tensors="pt")
        with MultiVectorInjector(llm.model, sets, {"formality": 0.0, "refusal": 0.0} | strengths):
            output = llm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        texts.append(llm.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert texts[0] != texts[2]
    return texts


def test_one_text(llm, expected):
    for prompt, config, text in zip(PROMPTS, CONFIGS, expected, strict=True):
        assert llm.invoke(prompt, config) == text
        assert "".join(llm.stream(prompt, config)) == text
    assert asyncio.run(llm.ainvoke(PROMPTS[1], CONFIGS[1])) == expected[1]
    llm.set_strength("formality", 1.5)
    assert llm.invoke(PROMPTS[1]) == expected[1]


def test_a_batch_is_one_run_of_the_model(llm, expected, monkeypatch):
    runs = []
    generate = llm.model.generate
    monkeypatch.setattr(
        llm.model, "generate", lambda **options: (runs.append(options["input_ids"].shape[0]), generate(**options))[1]
    )
    assert llm.batch(PROMPTS, CONFIGS) == expected
    assert asyncio.run(llm.abatch(PROMPTS, CONFIGS)) == expected
    assert runs == [3, 3]
    llm.max_batch_size = 2
    assert llm.batch(PROMPTS, CONFIGS) == expected
    assert runs == [3, 3, 2, 1]


def test_the_cache_knows_the_rows_of_a_batch_apart(llm, expected):
    """Rows 0 and 2 have one prompt and different strengths."""
    llm.cache = InMemoryCache()
    assert llm.batch(PROMPTS, CONFIGS) == expected
    assert llm.batch(PROMPTS, CONFIGS) == expected
    assert llm.invoke(PROMPTS[2], CONFIGS[2]) == expected[2]


def test_errors_come_back_where_they_are_asked_for(llm):
    with pytest.raises(OptionError, match="The prompt is empty"):
        llm.invoke("")
    failed = llm.batch(["", "Once"], CONFIGS[:2], return_exceptions=True)
    assert isinstance(failed[0], OptionError)
    assert isinstance(failed[1], str)


def test_a_chat_model_on_the_same_strengths(llm):
    chat = SteeredChatModel.sharing(llm)
    llm.set_strength("formality", 1.5)
    assert chat.get_strength("formality") == 1.5
    assert chat.model is llm.model
    before = chat.invoke("Hi!").content
    chat.disable_steering()
    assert llm.strengths == {"formality": 0.0, "refusal": 0.0}
    assert chat.invoke("Hi!").content != before


def test_a_text_that_has_its_beginning_gets_no_second_one():
    tokenizer = byte_tokenizer()
    given = {"test": {"vectors": make_vector(tiny_llama())}}
    llm = SteeredLLM(model=tiny_llama(vocab_size=272), tokenizer=tokenizer, steering_configs=given)
    begun, plain = llm._requests(["<s>Once", "Once"], None, {})
    assert begun.ids == plain.ids == tuple(tokenizer("Once")["input_ids"])
