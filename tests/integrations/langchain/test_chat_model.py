"""The chat model against the model generated from by hand, one call at a time."""

import asyncio
import threading

import numpy as np
import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.runnables import RunnableLambda

from chat_templates import OPENS, Processor, byte_tokenizer
from rotalabs_steer import ActivationInjector, MultiVectorInjector, SteeringVectorSet
from rotalabs_steer.errors import ChatTemplateError, LayerError, OptionError, VectorError
from rotalabs_steer.integrations.langchain import SteeredChatModel
from rotalabs_steer.steering.acting_layers import NotSteeringWarning
from tiny import count_hooks, make_vector, tiny_llama

PROMPTS = ["How do I boil an egg?", "Hi!", "Name three rivers of Europe and the seas they reach.", "Why?"]
STRENGTHS = [{"formality": 0.0}, {"formality": 1.5}, {"formality": -1.5, "refusal": 1.0}, {"refusal": -1.0}]


def config(strengths, **more):
    return {"configurable": {"strengths": strengths}, **more}


def by_hand(chat, sets, prompt, strengths, new_tokens=6):
    """What `transformers` and a plain injector write: the second route."""
    text = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    inputs = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with MultiVectorInjector(chat.model, sets, {"formality": 0.0, "refusal": 0.0} | strengths):
        output = chat.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return chat.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture
def expected(chat, sets):
    texts = [by_hand(chat, sets, prompt, strengths) for prompt, strengths in zip(PROMPTS, STRENGTHS, strict=True)]
    assert len(set(texts)) == 4
    return texts


@pytest.fixture
def configs_by_row():
    return [config(strengths) for strengths in STRENGTHS]


def test_a_call_is_steered_by_its_config(chat, expected):
    for prompt, strengths, text in zip(PROMPTS, STRENGTHS, expected, strict=True):
        answer = chat.invoke(prompt, config(strengths))
        assert answer.content == text
        assert answer.response_metadata["strengths"] == {"formality": 0.0, "refusal": 0.0} | strengths
    assert count_hooks(chat.model) == 0


def test_set_strength_is_for_every_later_call(chat, sets):
    chat.set_strength("formality", 1.5)
    assert chat.get_strength("formality") == 1.5
    assert chat.invoke("Hi!").content == by_hand(chat, sets, "Hi!", {"formality": 1.5})
    chat.disable_steering()
    assert chat.strengths == {"formality": 0.0, "refusal": 0.0}
    assert chat.invoke("Hi!").content == by_hand(chat, sets, "Hi!", {})
    chat.enable_steering("formality")
    assert chat.get_strength("formality") == 1.0
    chat.enable_steering("refusal", 0.5)
    chat.disable_steering("formality")
    assert chat.strengths == {"formality": 0.0, "refusal": 0.5}


def test_the_strengths_of_a_call_may_be_given_as_keyword(chat, expected):
    assert chat.invoke(PROMPTS[1], strengths=STRENGTHS[1]).content == expected[1]
    assert chat.bind(strengths=STRENGTHS[1]).invoke(PROMPTS[1]).content == expected[1]
    assert chat.invoke(PROMPTS[1], config({"formality": 9.0}), strengths=STRENGTHS[1]).content == expected[1]


def test_the_config_of_a_chain_reaches_the_model(chat, expected):
    chain = RunnableLambda(str) | chat | (lambda message: message.content)
    assert chain.invoke(PROMPTS[1], config(STRENGTHS[1])) == expected[1]
    nested = RunnableLambda(lambda prompt: chat.invoke(prompt).content)  # which passes no config on
    assert nested.invoke(PROMPTS[1], config(STRENGTHS[1])) == expected[1]


def test_a_batch_is_one_run_of_the_model_with_strengths_by_row(chat, expected, configs_by_row, monkeypatch):
    runs = []
    generate = chat.model.generate
    monkeypatch.setattr(
        chat.model, "generate", lambda **options: (runs.append(options["input_ids"].shape[0]), generate(**options))[1]
    )
    assert [answer.content for answer in chat.batch(PROMPTS, configs_by_row)] == expected
    assert runs == [4]
    answers = asyncio.run(chat.abatch(PROMPTS, configs_by_row))
    assert [answer.content for answer in answers] == expected
    assert runs == [4, 4]
    chat.max_batch_size = 3
    assert [answer.content for answer in chat.batch(PROMPTS, configs_by_row)] == expected
    assert runs == [4, 4, 3, 1]
    assert [answer.content for answer in chat.batch(PROMPTS[:2], config(STRENGTHS[1], max_concurrency=1))][1] == (
        expected[1]
    )
    assert runs == [4, 4, 3, 1, 1, 1]
    assert chat.batch([]) == []


def test_a_batch_of_many_inputs_in_a_chain_needs_no_more_threads_than_it_has(chat):
    answers = (RunnableLambda(str) | chat).batch(["Hi!"] * 20)
    assert len({answer.content for answer in answers}) == 1


def test_one_bad_input_of_a_batch_does_not_hold_up_the_others(chat, expected, configs_by_row):
    configs_by_row[1] = config({"no_such": 1.0})
    answers = chat.batch(PROMPTS, configs_by_row, return_exceptions=True)
    assert isinstance(answers[1], OptionError)
    assert [answers[number].content for number in (0, 2, 3)] == [expected[number] for number in (0, 2, 3)]
    answers = asyncio.run(chat.abatch(PROMPTS, configs_by_row, return_exceptions=True))
    assert isinstance(answers[1], OptionError)
    assert answers[3].content == expected[3]
    with pytest.raises(OptionError, match="Strength for 'no_such', but there are vectors for"):
        chat.batch(PROMPTS, configs_by_row)


def test_an_error_of_the_model_reaches_every_call_of_the_batch(chat, monkeypatch):
    def fail(**options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chat.model, "generate", fail)
    answers = chat.batch(PROMPTS[:2], return_exceptions=True)
    assert [str(answer) for answer in answers] == ["out of memory"] * 2


def test_concurrent_calls_do_not_disturb_each_other(chat, expected, configs_by_row):
    """Threads, tasks and streams at once, each at its own strengths."""

    async def tasks():
        return await asyncio.gather(*map(chat.ainvoke, PROMPTS * 2, configs_by_row * 2))

    async def streamed(prompt, one):
        return "".join([chunk.content async for chunk in chat.astream(prompt, one)])

    async def streams():
        return await asyncio.gather(*map(streamed, PROMPTS, configs_by_row))

    seen = {}

    def thread(number):
        seen[number] = chat.invoke(PROMPTS[number], configs_by_row[number]).content

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    assert [answer.content for answer in asyncio.run(tasks())] == expected * 2
    for one in threads:
        one.join()
    assert [seen[number] for number in range(4)] == expected
    assert asyncio.run(streams()) == expected
    as_completed = dict(chat.batch_as_completed(PROMPTS, configs_by_row))
    assert [as_completed[number].content for number in range(4)] == expected
    assert count_hooks(chat.model) == 0


def test_a_call_keeps_the_strength_it_began_with(chat, sets):
    chunks = chat.stream("Hi!", config({"formality": 1.5}))
    first = next(chunks)
    chat.set_strength("formality", -1.5)
    text = first.content + "".join(chunk.content for chunk in chunks)
    assert text == by_hand(chat, sets, "Hi!", {"formality": 1.5})


def test_a_stream_is_the_answer_in_pieces(chat, expected):
    chunks = list(chat.stream(PROMPTS[1], config(STRENGTHS[1]), max_new_tokens=6))
    assert len(chunks) > 2
    whole = sum(chunks[1:], chunks[0])
    answer = chat.invoke(PROMPTS[1], config(STRENGTHS[1]))
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == answer.content == expected[1]
    assert whole.usage_metadata == answer.usage_metadata
    for fact in ("finish_reason", "model_name", "strengths"):
        assert whole.response_metadata[fact] == answer.response_metadata[fact]


def test_a_stream_that_is_left_stops_the_model(chat):
    before = set(threading.enumerate())
    chunks = chat.stream("Hi!", max_new_tokens=450)
    next(chunks)
    assert set(threading.enumerate()) > before, "the model writes in a thread of its own"
    chunks.close()
    assert count_hooks(chat.model) == 0
    assert set(threading.enumerate()) <= before


def test_an_error_while_streaming_is_raised_to_the_reader(chat, monkeypatch):
    def fail(**options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chat.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(chat.stream("Hi!"))


def test_stop_ends_the_answer_before_the_string(chat):
    whole = chat.invoke("Hi!", max_new_tokens=8).content
    stop = whole[3:6]
    before = whole[: whole.index(stop)]
    answer = chat.invoke("Hi!", max_new_tokens=8, stop=[stop])
    assert answer.content == before
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["output_tokens"] < 8
    assert "".join(chunk.content for chunk in chat.stream("Hi!", max_new_tokens=8, stop=[stop])) == before
    chat.stop = [stop]
    assert chat.invoke("Hi!", max_new_tokens=8).content == before
    assert chat.invoke("Hi!", max_new_tokens=8, stop=["never"]).content == whole


def test_stop_strings_that_would_stop_everything_are_refused(chat):
    with pytest.raises(OptionError, match="stop is one string; give a list of strings"):
        chat.invoke("Hi!", stop="abc")
    with pytest.raises(OptionError, match=r"stop is \[''\]. Each stop string must be a string that is not empty"):
        chat.invoke("Hi!", stop=[""])
    chat.stop = "abc"
    with pytest.raises(OptionError, match="stop is one string"):
        chat.batch(["Hi!"])


@pytest.mark.parametrize("option", ["num_return_sequences", "max_new_tokens", "streamer", "return_dict_in_generate"])
def test_options_for_generate_that_contradict_the_settings_are_refused(chat, option):
    with pytest.raises(OptionError, match=rf"generation_kwargs contains \['{option}'\], which the steered model sets"):
        chat.invoke("Hi!", generation_kwargs={option: 2})


def test_numbers_may_be_those_of_numpy(chat):
    answer = chat.invoke("Hi!", max_new_tokens=np.int64(3), temperature=np.float32(0))
    assert answer.usage_metadata["output_tokens"] <= 3
    for wrong in ({"max_new_tokens": "3"}, {"max_new_tokens": 2.5}, {"temperature": float("nan")}):
        with pytest.raises(OptionError, match="must be an integer that is at least 1 and temperature a number"):
            chat.invoke("Hi!", **wrong)


def test_temperature_zero_is_greedy_and_above_it_is_drawn(chat):
    chat.temperature = 0.0
    assert chat.invoke("Hi!").content == chat.invoke("Hi!").content
    chat.temperature = 5.0
    torch.manual_seed(0)
    drawn = {chat.invoke("Hi!").content for _ in range(4)}
    assert len(drawn) > 1
    chat.do_sample = False
    assert chat.invoke("Hi!").content == chat.invoke("Hi!").content
    with pytest.raises(OptionError, match="temperature a number that is at least 0, got 6 and -1"):
        chat.invoke("Hi!", temperature=-1.0, do_sample=True)


def test_the_cache_knows_strengths_apart(chat, expected):
    chat.cache = InMemoryCache()
    for _ in range(2):
        assert chat.invoke(PROMPTS[1], config(STRENGTHS[1])).content == expected[1]
    plain = chat.invoke(PROMPTS[1]).content
    assert plain != expected[1]
    chat.set_strength("formality", 1.5)
    assert chat.invoke(PROMPTS[1]).content == expected[1]
    replaced = make_vector(chat.model, 1, 4.0, 99, "formality")
    chat.add_vector("formality", replaced, 1.5)
    assert chat.invoke(PROMPTS[1]).content != expected[1]
    assert len({answer.content for answer in chat.batch([PROMPTS[1]] * 3)}) == 1  # cached calls ask for nothing


def test_add_vector_while_in_use(chat, sets, tmp_path):
    vector = make_vector(chat.model, 2, 4.0, 5, "humor")
    before = chat.invoke("Hi!").content
    vector.save(tmp_path / "humor")
    chat.add_vector("humor", tmp_path / "humor", strength=2.0)
    assert chat.get_strength("humor") == 2.0
    with ActivationInjector(chat.model, vector, 2.0):
        expected = by_hand(chat, sets, "Hi!", {})
    assert chat.invoke("Hi!").content == expected != before
    with pytest.raises(VectorError, match="has 5 numbers"):
        chat.add_vector("humor", type(vector)("humor", 1, torch.ones(5), "tiny"))
    assert chat.invoke("Hi!").content == expected


def test_unknown_behaviours(chat):
    for use in (
        chat.get_strength,
        chat.disable_steering,
        chat.enable_steering,
        lambda name: chat.set_strength(name, 1),
    ):
        with pytest.raises(KeyError, match="No vectors for behaviour 'wit'"):
            use("wit")
    with pytest.raises(OptionError, match="Strength for 'wit', but there are vectors for"):
        chat.invoke("Hi!", config({"wit": 1.0}))
    with pytest.raises(OptionError, match="not a finite number"):
        chat.invoke("Hi!", config({"formality": "much"}))
    for wrong in (0.5, "formality=0.5", ["formality"]):
        with pytest.raises(OptionError, match=r"Strengths are given by behaviour, as in \{'formality': 0.5"):
            chat.invoke("Hi!", config(wrong))
        with pytest.raises(OptionError, match="Strengths are given by behaviour"):
            chat.invoke("Hi!", strengths=wrong)
    with pytest.raises(OptionError, match="is a list; each call takes one number"):
        chat.set_strength("formality", [1.0, 2.0])


def test_unknown_settings_are_errors(small, tokenizer, configs, chat):
    with pytest.raises(ValueError, match=r"steering_config\n.*Extra inputs are not permitted"):
        SteeredChatModel(model=small, tokenizer=tokenizer, steering_config=configs)
    with pytest.raises(OptionError, match=r"Unknown options \['strenghts'\]"):
        chat.invoke("Hi!", strenghts={"formality": 1.0})
    with pytest.raises(OptionError, match="needs its tokenizer"):
        SteeredChatModel(model=small)
    with pytest.raises(OptionError, match="give a name as model_name"):
        SteeredChatModel(model="SmolLM2")
    with pytest.raises(OptionError, match="Give model_name, or a loaded model"):
        SteeredChatModel()
    with pytest.raises(OptionError, match="torch_dtype is 'int3'"):
        SteeredChatModel(model_name="SmolLM2", torch_dtype="int3")


def test_prompts_that_cannot_be_answered(chat, tokenizer, monkeypatch):
    with pytest.raises(OptionError, match="tokens; the model's context holds 512"):
        chat.invoke("long " * 600)
    with pytest.raises(OptionError, match="The conversation is empty"):
        chat.invoke([])
    with pytest.raises(OptionError, match="block of type 'image_url'; this model reads text only"):
        chat.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])])
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        chat.invoke("Hi!")


def test_an_answer_ends_where_the_context_does(chat):
    answer = chat.invoke("long " * 480, max_new_tokens=100)
    assert answer.usage_metadata["total_tokens"] <= 512
    assert answer.response_metadata["finish_reason"] in ("length", "stop")


def test_layers_of_a_config(small, tokenizer, sets, chat):
    def at(layer):
        configs = {"formality": {"vectors": sets["formality"], "strength": 1.5, "layer": layer}}
        return SteeredChatModel(
            model=small, tokenizer=tokenizer, steering_configs=configs, temperature=0, max_new_tokens=6
        )

    with ActivationInjector(small, sets["formality"][2], 1.5):
        expected = by_hand(chat, sets, "Hi!", {})
    assert at(2).invoke("Hi!").content == expected != at(1).invoke("Hi!").content
    with pytest.raises(LayerError, match=r"no vector at layer 3; it has \[1, 2\]"):
        at(3)


def test_a_set_acts_at_its_acting_layers(small, tokenizer, sets, chat):
    def using(vectors):
        configs = {"formality": {"vectors": vectors, "strength": 1.5}}
        return SteeredChatModel(
            model=small, tokenizer=tokenizer, steering_configs=configs, temperature=0, max_new_tokens=6
        )

    spread, one = using(sets["formality"].with_acting_layers([1, 2])), using(sets["formality"])
    with ActivationInjector(small, list(sets["formality"]), 1.5):
        expected = by_hand(chat, sets, "Hi!", {})
    assert spread.invoke("Hi!").content == expected != one.invoke("Hi!").content
    batch = spread.batch(["Hi!", "Hi!"], [config({"formality": 0.0}), config({})])
    assert batch[1].content == expected != batch[0].content
    assert spread._identifying_params["vectors"] != one._identifying_params["vectors"]


def test_a_set_that_does_not_steer_is_said_to_be_one(small, tokenizer, sets):
    found = SteeringVectorSet("formality", list(sets["formality"]), {"steers": False})
    with pytest.warns(NotSteeringWarning, match="the vectors of 'formality' do not steer tiny"):
        SteeredChatModel(model=small, tokenizer=tokenizer, steering_configs={"formality": {"vectors": found}})


@pytest.mark.real_model
def test_the_real_model_in_a_batch_and_alone(real_chat):
    prompts = ["Name a colour.", "What is the capital of France? Answer in one word.", "Say hello."]
    configs = [config({"noise": strength}) for strength in (0.0, 2.0, -2.0)]
    alone = [real_chat.invoke(prompt, one).content for prompt, one in zip(prompts, configs, strict=True)]
    assert [answer.content for answer in real_chat.batch(prompts, configs)] == alone
    assert real_chat.invoke(prompts[1]).content != alone[1]


def test_options_for_generate_may_be_lists(chat):
    plain = chat.invoke("Hi!").content
    first = chat.tokenizer(plain, add_special_tokens=False)["input_ids"][0]
    options = {"generation_kwargs": {"suppress_tokens": [first]}}
    alone = chat.invoke("Hi!", **options).content
    assert alone != plain
    assert [answer.content for answer in chat.batch(["Hi!", "Hi!"], **options)] == [alone, alone]
    assert "".join(piece.content for piece in chat.stream("Hi!", **options)) == alone


def test_a_chat_takes_template_options_and_processors():
    tokenizer, vectors = byte_tokenizer("{{ bos_token }}" + OPENS), make_vector(tiny_llama(), 1)
    model = tiny_llama(vocab_size=272, max_position_embeddings=512)
    given = {"test": {"vectors": vectors}}
    settings = {"model": model, "steering_configs": given, "temperature": 0, "max_new_tokens": 2}
    chat = SteeredChatModel(tokenizer=tokenizer, template_options={"enable_thinking": False}, **settings)
    thinking = SteeredChatModel(tokenizer=tokenizer, **settings)
    lengths = [each.invoke("Hi!").usage_metadata["input_tokens"] for each in (chat, thinking)]
    assert lengths[0] - lengths[1] == len("\n\n</think>\n\n")
    assert chat._identifying_params["template_options"] == {"enable_thinking": False}
    assert thinking._identifying_params != chat._identifying_params
    processor = SteeredChatModel(tokenizer=Processor(tokenizer), **settings)
    assert processor.invoke("Hi!").content == thinking.invoke("Hi!").content
    with pytest.raises(OptionError, match="never mentions the option 'thinkin'"):
        SteeredChatModel(tokenizer=tokenizer, template_options={"thinkin": False}, **settings)
