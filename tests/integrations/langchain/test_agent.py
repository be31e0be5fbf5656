"""Agents: graph, tools and chat template are real; what the model writes is given, as no small model would."""

import asyncio
import json

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.langchain import SteeredAgentExecutor, create_steered_agent

CALL = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})


@pytest.fixture
def weather():
    asked = []

    @tool
    def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"Rain in {city}."

    weather.metadata = {"asked": asked}
    return weather


@pytest.fixture
def says(chat, monkeypatch):
    """Makes the model write given answers, one a call, and records its prompts. Nothing else is replaced."""

    def script(*answers):
        prompts, left = [], list(answers)

        def write(**options):
            import torch

            prompts.append(chat.tokenizer.decode(options["input_ids"][0]))
            text = left.pop(0) if len(left) > 1 else left[0]
            new = chat.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            end = torch.tensor([[chat.tokenizer.eos_token_id]])
            return torch.cat([options["input_ids"], new, end], dim=1)

        monkeypatch.setattr(chat.model, "generate", write)
        chat.max_new_tokens = 100
        return prompts

    return script


def test_a_tool_is_called_and_its_result_comes_back_to_the_model(chat, says, weather):
    prompts = says(f"<tool_call>\n{CALL}\n</tool_call>", "It rains.")
    agent = SteeredAgentExecutor(chat, [weather], system_prompt="Be brief.")
    history = [HumanMessage("Hi!"), AIMessage("Hello.")]
    assert agent.run("Weather in Oslo?", chat_history=history) == "It rains."
    assert weather.metadata["asked"] == ["Oslo"]
    assert "Be brief." in prompts[0]
    assert "Hello.<|im_end|>\n<|im_start|>user\nWeather in Oslo?" in prompts[0]
    assert "<|im_start|>tool\n<tool_response>\nRain in Oslo.\n</tool_response>" in prompts[1]


def test_a_result_that_the_model_makes_up_is_not_taken_for_one(chat, says, weather):
    """rotalabs-steer 1.2 answered with the made-up result and never called the tool."""
    prompts = says(
        f"<tool_call>\n{CALL}\n</tool_call>\n<tool_response>\nSun!\n</tool_response>\nIt is sunny.", "It rains."
    )
    assert SteeredAgentExecutor(chat, [weather]).run("Weather in Oslo?") == "It rains."
    assert weather.metadata["asked"] == ["Oslo"]
    assert "Sun!" not in prompts[1]


def test_an_unknown_tool_is_reported_to_the_model(chat, says, weather):
    prompts = says('<tool_call>{"name": "snow", "arguments": {}}</tool_call>', "Sorry.")
    agent = SteeredAgentExecutor(chat, [weather])
    assert agent.run("Snow?") == "Sorry."
    assert "snow" in prompts[1].rpartition("<tool_response>")[2]


def test_an_agent_stops_at_max_iterations(chat, says, weather):
    prompts = says(f"<tool_call>{CALL}</tool_call>")
    agent = SteeredAgentExecutor(chat, [weather], max_iterations=3)
    assert "limits exceeded: run limit (3/3)" in agent.run("Weather in Oslo?")
    assert len(prompts) == 3
    with pytest.raises(OptionError, match="max_iterations is 0"):
        SteeredAgentExecutor(chat, [weather], max_iterations=0)


def test_strengths_of_an_agent(chat, says, weather):
    says("Hello.")
    agent = SteeredAgentExecutor(chat, [weather])
    agent.set_strength("formality", 0.5)
    assert agent.get_strength("formality") == chat.get_strength("formality") == 0.5
    agent.disable_steering()
    agent.enable_steering("refusal")
    assert chat.strengths == {"formality": 0.0, "refusal": 1.0}
    config = {"configurable": {"strengths": {"formality": -2.0}}}
    messages = agent.agent.invoke({"messages": [HumanMessage("Hi!")]}, config)["messages"]
    assert messages[-1].response_metadata["strengths"] == {"formality": -2.0, "refusal": 1.0}
    assert asyncio.run(agent.arun("Hi!", config=config)) == "Hello."
    assert not any(isinstance(message, ToolMessage) for message in messages)


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
