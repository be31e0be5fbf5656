"""How often an agent's model calls a tool, steered by `tool_restraint` and not.

    python benchmarks/tool_calls.py --model FOLDER_OR_ID --strengths -0.5 0.5

The vector comes from the built-in pairs (train split). Prompts are those of `evaluation.jsonl`: as many that need no
tool as need one. What is counted is the first turn of an agent that has been given three tools: alone, and after two
questions that were answered by calls, which small models need to call anything. Rates have Wilson intervals; changes
are paired by prompt.
"""

from __future__ import annotations

import argparse
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from rotalabs_steer.datasets import load_tool_restraint_pairs
from rotalabs_steer.datasets.builtin import load_evaluation
from rotalabs_steer.extraction import extract_caa_vectors
from rotalabs_steer.integrations.langchain import SteeredChatModel
from rotalabs_steer.intervals import compare_paired, rate_of
from rotalabs_steer.sample_model import sample_model_path

SYSTEM = "You are a helpful assistant."


@tool
def web_search(query: str) -> str:
    """Search the public web."""
    return f"No results for {query}."


@tool
def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    return f"{expression} = 42"


@tool
def get_weather(city: str) -> str:
    """Weather forecast for a place."""
    return f"Rain in {city}."


TOOLS = [web_search, calculator, get_weather]
SHOWN = [
    HumanMessage("What is the weather in Rome?"),
    AIMessage("", tool_calls=[{"name": "get_weather", "args": {"city": "Rome"}, "id": "1"}]),
    ToolMessage("Rain in Rome.", tool_call_id="1"),
    AIMessage("It rains in Rome."),
    HumanMessage("How much is 17 times 23?"),
    AIMessage("", tool_calls=[{"name": "calculator", "args": {"expression": "17 * 23"}, "id": "2"}]),
    ToolMessage("17 * 23 = 391", tool_call_id="2"),
    AIMessage("It is 391."),
]


def main() -> None:
    options = read_options()
    chat: Any = SteeredChatModel(
        model_name=options.model or str(sample_model_path()), temperature=0, max_new_tokens=options.tokens
    )
    pairs = load_tool_restraint_pairs("train")[: options.pairs]
    vectors = extract_caa_vectors(chat.model, chat.tokenizer, pairs, [options.layer])
    chat.add_vector("tool_restraint", vectors, 0.0)
    print(f"layer {options.layer}, norm {vectors[options.layer].norm:.1f}, {len(pairs)} pairs", flush=True)

    examples = load_evaluation("tool_restraint")
    sides = [[e.prompt for e in examples if e.expected_behavior is direct] for direct in (True, False)]
    prompts = [(prompt, side == 0) for side in (0, 1) for prompt in sides[side][: options.prompts // 2]]
    strengths = [0.0, *options.strengths]
    for shown, before in (("nothing", []), ("two calls", SHOWN)):
        outcomes = {strength: first_turns(chat, before, [p for p, _ in prompts], strength) for strength in strengths}
        for needless, label in ((True, "no tool needed"), (False, "a tool needed")):
            rows = [number for number, (_, direct) in enumerate(prompts) if direct is needless]
            print(f"\n{label}, {shown} before: {len(rows)} prompts", flush=True)
            for strength in strengths:
                print(f"  strength {strength:+.1f}: {compare(outcomes[0.0], outcomes[strength], rows)}", flush=True)


def compare(unsteered: list[tuple[bool, bool]], steered: list[tuple[bool, bool]], rows: list[int]) -> str:
    before, after = ([float(outcomes[row][0]) for row in rows] for outcomes in (unsteered, steered))
    unreadable = sum(steered[row][1] for row in rows)
    change = compare_paired(before, after)
    return (
        f"called {sum(after):.0f}, rate {rate_of([bool(one) for one in after])}, unreadable calls {unreadable}, "
        f"change {change.difference} (p = {change.p_value:.3f})"
    )


def first_turns(chat: Any, before: list[BaseMessage], prompts: list[str], strength: float) -> list[tuple[bool, bool]]:
    """For each prompt: a tool was called; something that was meant as a call could not be read."""
    inputs = [[SystemMessage(SYSTEM), *before, HumanMessage(prompt)] for prompt in prompts]
    answers = chat.bind_tools(TOOLS).batch(inputs, {"configurable": {"strengths": {"tool_restraint": strength}}})
    for answer in answers[:2]:
        print(f"  {strength:+.1f}  {answer.content[:100]!r} {answer.tool_calls}")
    return [(bool(answer.tool_calls), bool(answer.invalid_tool_calls)) for answer in answers]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="Hugging Face id or folder; SmolLM2-135M-Instruct by default")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--strengths", type=float, nargs="+", default=[-0.5, 0.5])
    return parser.parse_args()


if __name__ == "__main__":
    main()
