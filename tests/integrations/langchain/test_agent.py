"""Agents on the real SmolLM2, which calls tools once it has seen it done twice in the conversation before."""

import asyncio

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.langchain import SteeredAgentExecutor, create_steered_agent

ASKED = "What is the weather in Oslo?"


@pytest.fixture
def weather():
    asked = []

    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"Snow in {city}."

    weather.metadata = {"asked": asked}
    return weather


@pytest.fixture
def caller(real_chat):
    """SmolLM2 with room for a call; steering off."""
    real_chat.max_new_tokens = 40
    return real_chat


def done_before(name="weather"):
    """Two questions that were answered by a call of a tool."""
    return [
        message
        for number, city in enumerate(("Paris", "Rome"))
        for message in (
            HumanMessage(f"What is the weather in {city}?"),
            AIMessage("", tool_calls=[{"name": name, "args": {"city": city}, "id": str(number)}]),
            ToolMessage(f"Rain in {city}.", tool_call_id=str(number)),
            AIMessage(f"Rain in {city}."),
        )
    ]


@pytest.mark.real_model
def test_a_tool_is_called_and_its_result_comes_back_to_the_model(caller, weather):
    agent = SteeredAgentExecutor(caller, [weather])
    assert agent.run(ASKED, chat_history=done_before()) == "Snow in Oslo."
    assert weather.metadata["asked"] == ["Oslo"]
    assert asyncio.run(agent.arun(ASKED, chat_history=done_before())) == "Snow in Oslo."


@pytest.mark.real_model
def test_steering_changes_what_an_agent_does(caller, weather):
    agent = SteeredAgentExecutor(caller, [weather])
    agent.set_strength("noise", 0.2)
    agent.run(ASKED, chat_history=done_before())
    asked = list(weather.metadata["asked"])
    agent.disable_steering()
    agent.run(ASKED, chat_history=done_before())
    assert weather.metadata["asked"] == [*asked, "Oslo"]
    assert asked != ["Oslo"]


@pytest.mark.real_model
def test_an_unknown_tool_is_reported_to_the_model(caller, weather):
    agent = SteeredAgentExecutor(caller, [weather], max_iterations=2)
    history = done_before("forecast")
    messages = agent.agent.invoke({"messages": [*history, HumanMessage(ASKED)]})["messages"][len(history) + 1 :]
    assert messages[0].tool_calls[0]["name"] == "forecast"
    assert messages[1].status == "error"
    assert "forecast is not a valid tool" in messages[1].content
    assert messages[2].usage_metadata["input_tokens"] > messages[0].usage_metadata["input_tokens"]
    assert weather.metadata["asked"] == []


@pytest.mark.real_model
def test_an_agent_stops_at_max_iterations(caller, weather):
    agent = SteeredAgentExecutor(caller, [weather], max_iterations=1)
    assert "limits exceeded: run limit (1/1)" in agent.run(ASKED, chat_history=done_before())
    assert weather.metadata["asked"] == ["Oslo"]
    with pytest.raises(OptionError, match="max_iterations is 0"):
        SteeredAgentExecutor(caller, [weather], max_iterations=0)


def test_the_system_prompt_stands_before_the_conversation(chat, weather):
    def tokens(agent):
        return agent.agent.invoke({"messages": [HumanMessage("Hi!")]})["messages"][-1].usage_metadata["input_tokens"]

    plain, prompted = (SteeredAgentExecutor(chat, [weather], text) for text in ("Be brief.", "Be brief. " * 20))
    assert tokens(prompted) > tokens(plain) + 30


def test_strengths_of_an_agent(chat, weather):
    agent = SteeredAgentExecutor(chat, [weather], max_iterations=1)
    agent.set_strength("formality", 0.5)
    assert agent.get_strength("formality") == chat.get_strength("formality") == 0.5
    agent.disable_steering()
    agent.enable_steering("refusal")
    assert chat.strengths == {"formality": 0.0, "refusal": 1.0}
    config = {"configurable": {"strengths": {"formality": -2.0}}}
    messages = agent.agent.invoke({"messages": [HumanMessage("Hi!")]}, config)["messages"]
    assert messages[-1].response_metadata["strengths"] == {"formality": -2.0, "refusal": 1.0}
    assert asyncio.run(agent.arun("Hi!", config=config)) == messages[-1].text
    assert agent.run("Hi!") != messages[-1].text


def test_other_models(llm, weather):
    agent = SteeredAgentExecutor(llm, [weather], max_iterations=1)
    agent.set_strength("formality", 0.25)
    assert llm.get_strength("formality") == 0.25
    plain = SteeredAgentExecutor(FakeListChatModel(responses=["Hello."]), [])
    assert plain.run("Hi!") == "Hello."
    with pytest.raises(OptionError, match="a FakeListChatModel, which is not steered"):
        plain.set_strength("formality", 1.0)


def test_an_agent_from_a_model_name(small_folder, vector_folder, weather):
    configs = {"polite": {"vector_path": str(vector_folder / "formality"), "strength": 0.5}}
    agent = create_steered_agent(str(small_folder), configs, [weather], device="cpu")
    assert agent.get_strength("polite") == 0.5
    assert agent.llm.model_name == str(small_folder)
