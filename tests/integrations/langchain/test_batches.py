"""Batches of the chat model and the plain-text model: one run of the model, calls of LangChain all the same."""

import asyncio
import threading
import uuid

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult

from rotalabs_steer.errors import OptionError

PROMPTS = ["How do I boil an egg?", "Hi!", "Why?"]
STRENGTHS = [{"formality": 0.0}, {"formality": 1.5}, {"formality": -1.5, "refusal": 1.0}]


def config(strengths, **more):
    return {"configurable": {"strengths": strengths}, **more}


def text(answer):
    return answer if isinstance(answer, str) else answer.content


@pytest.fixture(params=["chat", "llm"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["batch", "abatch"])
def batch(request, model):
    """`batch` as a function, or `abatch` run to its end."""
    if request.param == "batch":
        return model.batch
    return lambda *given, **options: asyncio.run(model.abatch(*given, **options))


@pytest.fixture
def runs(model, monkeypatch):
    """Number of rows of each run of the model."""
    rows = []
    generate = model.model.generate

    def counted(**options):
        rows.append(options["input_ids"].shape[0])
        return generate(**options)

    monkeypatch.setattr(model.model, "generate", counted)
    return rows


class Recorder(BaseCallbackHandler):
    """What LangChain tells the callbacks of one input."""

    def __init__(self):
        self.events = []

    def on_chat_model_start(self, serialized, messages, *, run_id, tags, metadata, name=None, **more):
        self.events.append(("start", run_id, tags, metadata["row"], name))

    def on_llm_start(self, serialized, prompts, *, run_id, tags, metadata, name=None, **more):
        self.events.append(("start", run_id, tags, metadata["row"], name))

    def on_llm_end(self, response: LLMResult, *, run_id, **more):
        self.events.append(("end", run_id, response.generations[0][0].text))

    def on_llm_error(self, error, *, run_id, **more):
        self.events.append(("error", run_id, type(error)))


def test_each_input_has_its_own_callbacks_tags_names_and_run_ids(model, batch, runs):
    recorders = [Recorder() for _ in PROMPTS]
    run_ids = [uuid.uuid4() for _ in PROMPTS] if model._llm_type == "steered_chat_model" else [None] * 3
    configs = [
        config(
            strengths,
            callbacks=[recorder],
            tags=[f"tag {row}"],
            metadata={"row": row},
            run_name=f"name {row}",
            run_id=run_ids[row],
        )
        for row, (strengths, recorder) in enumerate(zip(STRENGTHS, recorders, strict=True))
    ]
    answers = batch(PROMPTS, configs)
    assert runs == [3]
    for row, recorder in enumerate(recorders):
        start, end = recorder.events
        assert start[0] == "start"
        assert start[2:] == ([f"tag {row}"], row, f"name {row}")
        assert run_ids[row] in (None, start[1])
        assert end == ("end", start[1], text(answers[row]))


def test_only_the_input_that_fails_reports_an_error(model, batch, runs):
    recorders = [Recorder() for _ in PROMPTS]
    configs = [config({}, callbacks=[recorder], metadata={"row": 0}) for recorder in recorders]
    given = ["Hi!", "long " * 600, "Why?"]
    answers = batch(given, configs, return_exceptions=True)
    assert runs == [2]
    assert isinstance(answers[1], OptionError)
    assert [[event[0] for event in recorder.events] for recorder in recorders] == [
        ["start", "end"],
        ["start", "error"],
        ["start", "end"],
    ]
    assert recorders[1].events[1][2] is OptionError
    assert [text(answers[row]) for row in (0, 2)] == [text(model.invoke(given[row])) for row in (0, 2)]


def test_an_input_that_cannot_be_answered_raises_before_the_model_runs(batch, runs):
    with pytest.raises(OptionError, match="the model's context holds 512"):
        batch(["Hi!", "Why?", "long " * 600])
    with pytest.raises(OptionError, match="Strength for 'wit', but there are vectors for"):
        batch(PROMPTS, [config({}), config({}), config({"wit": 1.0})])
    with pytest.raises(OptionError, match=r"Unknown options \['top_q'\]"):
        batch(PROMPTS, top_q=0.5)
    assert runs == []


def test_inputs_that_fail_do_not_break_up_the_runs_of_the_others(model, batch, runs):
    model.max_batch_size = 2
    answers = batch(["Hi!", "long " * 600, "Why?", "Hi!"], return_exceptions=True)
    assert runs == [2, 1]
    assert isinstance(answers[1], OptionError)
    assert text(answers[0]) == text(answers[3])


def test_an_error_of_the_model_is_raised_for_each_input_of_one_run(model, batch, monkeypatch):
    calls = []

    def fail(**options):
        calls.append(options)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.model, "generate", fail)
    answers = batch(PROMPTS, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["out of memory"] * 3
    assert len(calls) == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        batch(PROMPTS)
    assert len(calls) == 2


def test_a_batch_keeps_the_strengths_it_began_with(model, batch, runs):
    expected = [text(answer) for answer in batch(PROMPTS)]

    class Changes(BaseCallbackHandler):
        def on_llm_end(self, response, **more):
            model.set_strength("formality", 1.5)

    answers = batch(PROMPTS, {"callbacks": [Changes()]})
    assert [text(answer) for answer in answers] == expected
    assert model.get_strength("formality") == 1.5
    assert runs == [3, 3]


def test_equal_inputs_are_drawn_apart_and_repeat_with_the_seed(batch, runs):
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append([text(answer) for answer in batch(["Hi!"] * 4, temperature=5.0)])
    assert len(set(drawn[0])) > 1
    assert drawn[0] == drawn[1]
    assert runs == [4, 4]


def test_a_batch_with_some_inputs_in_the_cache(model, batch):
    expected = [text(model.invoke(*each)) for each in zip(PROMPTS, map(config, STRENGTHS), strict=True)]
    model.cache = InMemoryCache()
    model.invoke(PROMPTS[1], config(STRENGTHS[1]))
    for _ in range(2):
        assert [text(answer) for answer in batch(PROMPTS, list(map(config, STRENGTHS)))] == expected
    other_strengths = batch([PROMPTS[0]] * 3, list(map(config, STRENGTHS)))
    assert len({text(answer) for answer in other_strengths}) == 3
    assert text(other_strengths[0]) == expected[0]


def test_inputs_that_are_all_in_the_cache_need_no_run(model, batch, runs):
    model.cache = InMemoryCache()
    first = batch(PROMPTS)
    assert [text(answer) for answer in batch(PROMPTS)] == list(map(text, first))
    assert runs == [3]


@pytest.mark.parametrize("limits", [{"max_concurrency": 0}, {"max_concurrency": -1}, {"max_concurrency": 1.5}])
def test_a_size_of_runs_below_one_is_refused(model, batch, limits, runs):
    with pytest.raises(OptionError, match="each must be an integer that is at least 1"):
        batch(PROMPTS, limits)
    model.max_batch_size = 0
    with pytest.raises(OptionError, match=r"max_batch_size and max_concurrency are \[0\]"):
        batch(PROMPTS)
    assert runs == []


def test_a_prompt_that_nearly_fills_the_context_does_not_shorten_the_answers_to_others(model, batch, runs):
    given = ["Hi!", "long " * 440, "Why?"]
    alone = [text(model.invoke(prompt, max_new_tokens=90)) for prompt in given]
    runs.clear()
    assert [text(answer) for answer in batch(given, max_new_tokens=90)] == alone
    assert runs == [2, 1]


def test_one_text_is_not_a_batch_of_its_letters(batch, runs):
    with pytest.raises(OptionError, match="inputs is one string; give a list of strings"):
        batch("Hi!")
    assert runs == []


def test_as_many_configs_as_inputs_are_needed(batch):
    with pytest.raises(ValueError, match="2 configs for 3 inputs"):
        batch(PROMPTS, [config({}), config({})])
    assert batch([]) == []
    assert batch([], []) == []


def test_a_batch_is_answered_in_the_thread_that_asks(model, monkeypatch):
    threads = []
    generate = model.model.generate
    monkeypatch.setattr(
        model.model, "generate", lambda **options: (threads.append(threading.current_thread()), generate(**options))[1]
    )
    model.batch(PROMPTS)
    assert threads == [threading.current_thread()]


def test_abatch_leaves_the_event_loop_free(model, monkeypatch):
    """The model runs on after the event loop has answered it, which it could not if it blocked the loop."""
    answered = threading.Event()
    generate = model.model.generate

    def waits(**options):
        loop.call_soon_threadsafe(answered.set)
        assert answered.wait(20)
        return generate(**options)

    async def ask():
        nonlocal loop
        loop = asyncio.get_running_loop()
        return await model.abatch(PROMPTS)

    loop = None
    monkeypatch.setattr(model.model, "generate", waits)
    assert len(asyncio.run(ask())) == 3


def test_options_stop_strings_and_bound_settings_are_those_of_single_calls(model, batch, runs):
    alone = [text(model.invoke(prompt, max_new_tokens=8)) for prompt in PROMPTS]
    stop = [alone[1][2:5]]
    runs.clear()
    stopped = batch(PROMPTS, stop=stop, max_new_tokens=8)
    assert runs == [3]
    assert text(stopped[1]) == alone[1].partition(stop[0])[0]
    assert [text(answer) for answer in model.bind(max_new_tokens=8).batch(PROMPTS)] == alone


def test_a_batch_of_structured_answers_is_one_run(chat, monkeypatch):
    rows = []
    generate = chat.model.generate
    monkeypatch.setattr(
        chat.model, "generate", lambda **options: (rows.append(options["input_ids"].shape[0]), generate(**options))[1]
    )
    schema = {
        "title": "Person",
        "description": "A person.",
        "type": "object",
        "properties": {"age": {"type": "integer"}},
    }
    answers = chat.with_structured_output(schema).batch(["Ada is 36.", "Bob is 8."], return_exceptions=True)
    assert rows == [2]
    assert len(answers) == 2


def test_messages_may_be_lists_of_text_blocks(chat, monkeypatch):
    blocks = [[HumanMessage([{"type": "text", "text": prompt}])] for prompt in PROMPTS]
    rows = []
    generate = chat.model.generate
    monkeypatch.setattr(
        chat.model, "generate", lambda **options: (rows.append(options["input_ids"].shape[0]), generate(**options))[1]
    )
    assert [answer.content for answer in chat.batch(blocks)] == [answer.content for answer in chat.batch(PROMPTS)]
    assert rows == [3, 3]


def test_a_batch_whose_callers_want_pieces_streams_each_answer(chat):
    expected = [answer.content for answer in chat.batch(PROMPTS)]
    chat.streaming = True
    pieces = []

    class Reads(BaseCallbackHandler):
        def on_llm_new_token(self, token, **more):
            pieces.append(token)

    assert [answer.content for answer in chat.batch(PROMPTS, {"callbacks": [Reads()]})] == expected
    assert "".join(pieces) == "".join(expected)
    assert len(pieces) > 3
