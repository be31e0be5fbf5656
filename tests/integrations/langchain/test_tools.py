"""Tools: what the model is told, what it is made to say, and what is read out of its answer."""

import json

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool

from rotalabs_steer.errors import ChatTemplateError, OptionError
from rotalabs_steer.integrations.langchain.generation import before_stop
from rotalabs_steer.integrations.langchain.messages import render_chat
from rotalabs_steer.integrations.langchain.tool_calls import forced_prefix, may_be_json_call, parse_answer


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


WEATHER = convert_to_openai_tool(weather)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
CONVERSATION = [
    SystemMessage("Be brief."),
    HumanMessage("Weather in Oslo?"),
    AIMessage("Let me see.", tool_calls=[tool_call(name="weather", args={"city": "Oslo"}, id="1")]),
    ToolMessage("Rain in Oslo.", tool_call_id="1"),
]
KNOWS_TOOLS = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls %}CALLS {{ call.function.name }} {{ call.function.arguments.city }}{% endfor %}"
    "\n{% endfor %}<assistant>"
)


def calls(parsed):
    return [(call["name"], call["args"]) for call in parsed.tool_calls]


def test_a_template_that_knows_no_tools_gets_them_spelled_out(tokenizer):
    text = render_chat(tokenizer, CONVERSATION, [WEATHER])
    system, user, call, result, answer = text.split("<|im_start|>")[1:]
    assert system.startswith("system\nBe brief.")
    assert json.dumps(WEATHER) in system
    assert user == "user\nWeather in Oslo?<|im_end|>\n"
    assert call == f"assistant\nLet me see.\n{CALL}<|im_end|>\n"
    assert result == "tool\n<tool_response>\nRain in Oslo.\n</tool_response><|im_end|>\n"
    assert answer == "assistant\n"


def test_the_declaration_is_what_the_built_in_pairs_have(tokenizer):
    """The vectors of tool_restraint are made in this format, so they act in it."""
    text = render_chat(tokenizer, [HumanMessage("Hi!")], [WEATHER])
    assert "You are a helpful assistant.\n\n# Tools\n\n" in text
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>" in text
    assert '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' in text


def test_a_template_that_knows_tools_gets_them_as_they_are(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", KNOWS_TOOLS)
    text = render_chat(tokenizer, CONVERSATION, [WEATHER])
    assert text.startswith("TOOLS [")
    assert "<assistant>Let me see.CALLS weather Oslo" in text
    assert "<tool>Rain in Oslo." in text
    assert "tool_call>" not in text


def test_a_template_that_drops_the_tool_role_gets_results_from_the_user(tokenizer, monkeypatch):
    only = "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}{{ m.role }}: {{ m.content }}\n"
    monkeypatch.setattr(tokenizer, "chat_template", only + "{% endif %}{% endfor %}")
    assert "user: <tool_response>\nRain in Oslo.\n</tool_response>" in render_chat(tokenizer, CONVERSATION, [WEATHER])
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system role') }}")
    with pytest.raises(ChatTemplateError, match="no system role"):
        render_chat(tokenizer, CONVERSATION)


def test_other_messages(tokenizer):
    text = render_chat(tokenizer, [ChatMessage(role="critic", content="Too long."), HumanMessage(["a", "b"])])
    assert "<|im_start|>critic\nToo long.<|im_end|>" in text
    assert "<|im_start|>user\nab<|im_end|>" in text


@pytest.mark.parametrize(
    ("text", "content", "expected"),
    [
        ("It rains.", "It rains.", []),
        (CALL, "", [("weather", {"city": "Oslo"})]),
        (f"Let me see.\n{CALL}", "Let me see.\n", [("weather", {"city": "Oslo"})]),
        (CALL.removesuffix("</tool_call>"), "", [("weather", {"city": "Oslo"})]),
        (CALL.replace("}}", "}}}"), "", [("weather", {"city": "Oslo"})]),
        (f"{CALL}\n{CALL}", "", [("weather", {"city": "Oslo"})] * 2),
        ('<tool_call>[{"name": "a", "arguments": {}}, {"name": "b"}]</tool_call>', "", [("a", {}), ("b", {})]),
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', "", [("weather", {"city": "Oslo"})]),
        (
            '```json\n[{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}]\n```',
            "",
            [("weather", {"city": "Oslo"})],
        ),
        ('{"name": "Oslo", "rain": true}', '{"name": "Oslo", "rain": true}', []),
        ('{"city": "Oslo"', '{"city": "Oslo"', []),
    ],
)
def test_calls_in_an_answer(text, content, expected):
    parsed = parse_answer(text, ["weather"])
    assert parsed.content == content
    assert calls(parsed) == expected
    assert parsed.invalid_tool_calls == []
    assert len({call["id"] for call in parsed.tool_calls}) == len(expected)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ('{"name": "weather", "arguments": {"city": }}', "Expecting value"),
        ('{"name": "weather", "arguments": {}} and more', "more text after the JSON: 'and more'"),
        ('{"arguments": {}}', 'an object with a "name"'),
        ('{"name": "weather", "arguments": ["Oslo"]}', 'an object with a "name"'),
        ("17", 'an object with a "name"'),
    ],
)
def test_a_call_that_cannot_be_read_is_kept_as_such(block, error):
    parsed = parse_answer(f"Hm. <tool_call>{block}</tool_call>", ["weather"])
    assert parsed.content == "Hm. "
    assert parsed.tool_calls == []
    (invalid,) = parsed.invalid_tool_calls
    assert invalid["args"] == block
    assert error in invalid["error"]


def test_a_result_that_the_model_makes_up_is_no_result():
    parsed = parse_answer(f"{CALL}\n<tool_response>\nSun!\n</tool_response>\nIt is sunny.", ["weather"])
    assert parsed.content == ""
    assert calls(parsed) == [("weather", {"city": "Oslo"})]


def test_forced_calls():
    assert forced_prefix(None, ["a"]) is forced_prefix("auto", ["a"]) is forced_prefix("none", ["a"]) is None
    named = '<tool_call>\n{"name": "b", "arguments": '
    assert forced_prefix("b", ["a", "b"]) == named
    assert forced_prefix({"type": "function", "function": {"name": "b"}}, ["a", "b"]) == named
    assert forced_prefix("any", ["b"]) == named
    assert forced_prefix("required", ["a", "b"]) == forced_prefix(True, ["a", "b"]) == '<tool_call>\n{"name": "'
    with pytest.raises(
        OptionError, match=r"tool_choice is 'c', which does not name a bound tool. Use one of \['a', 'b'\]"
    ):
        forced_prefix("c", ["a", "b"])


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_text_before_an_end_however_it_is_cut(size):
    text = "one <to two <tool_call> three"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert "".join(before_stop(pieces, ["<tool_call>", "##"])) == "one <to two "
    assert "".join(before_stop(pieces, ["four"])) == text
    assert "".join(before_stop(pieces, ["three", "two"])) == "one <to "
    assert "".join(before_stop(pieces, [])) == text


def test_what_may_still_become_a_call():
    assert may_be_json_call("")
    assert may_be_json_call(" {")
    assert may_be_json_call("```json")
    assert not may_be_json_call("It")


def test_a_forced_call_of_the_tiny_model_is_read_or_reported(chat):
    answer = chat.bind_tools([weather], tool_choice="weather").invoke("Oslo?")
    assert answer.content == ""
    assert len(answer.invalid_tool_calls) == 1  # random weights write no JSON
    assert answer.invalid_tool_calls[0]["args"].startswith('{"name": "weather", "arguments": ')
    with pytest.raises(OptionError, match="does not name a bound tool"):
        chat.bind_tools([weather], tool_choice="rain")


def test_tools_are_not_offered_where_none_is_to_be_called(chat):
    plain = chat.invoke("Oslo?")
    none = chat.bind_tools([weather], tool_choice="none").invoke("Oslo?")
    assert none.usage_metadata == plain.usage_metadata
    offered = chat.bind_tools([weather]).invoke("Oslo?")
    assert offered.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"] + 50


@pytest.mark.real_model
def test_an_unfinished_call_is_no_call_when_it_is_streamed(real_chat):
    """SmolLM2, made to begin a call, goes on with more JSON than it has room for."""
    real_chat.max_new_tokens = 24
    forced = real_chat.bind_tools([weather], tool_choice="weather")
    streamed = None
    for chunk in forced.stream("What is the weather in Oslo?"):
        streamed = chunk if streamed is None else streamed + chunk
    (invalid,), (whole,) = streamed.invalid_tool_calls, forced.invoke("What is the weather in Oslo?").invalid_tool_calls
    assert streamed.tool_calls == []
    assert invalid["args"] == f"<tool_call>{whole['args']}"
