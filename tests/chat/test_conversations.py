import json

import numpy as np
import pytest

from chat_templates import CHATML, byte_tokenizer
from rotalabs_steer.datasets import (
    ContrastPair,
    ContrastPairDataset,
    check_pairs,
    load_pairs,
    persona_pairs,
    save_csv,
    save_jsonl,
)
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import DatasetError

TURNS = [
    {"role": "user", "content": "I lost my keys."},
    {"role": "assistant", "content": "Oh no."},
    {"role": "user", "content": "What now?"},
]
WITH_SYSTEM = [{"role": "system", "content": "Be kind."}, *TURNS]


def test_a_conversation_is_rendered_with_all_its_turns():
    tokenizer = byte_tokenizer(CHATML)
    pair = ContrastPair("Call a locksmith.", "Tough luck.", prompt=TURNS, system="Be kind.")
    side = render_pair(tokenizer, pair).positive
    expected = tokenizer.apply_chat_template(WITH_SYSTEM, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(side.ids) == expected + "Call a locksmith."
    assert tokenizer.decode(side.ids[: side.response_start]) == expected


def test_the_sides_may_have_conversations_of_their_own():
    tokenizer = byte_tokenizer(CHATML)
    other = [*TURNS[:2], {"role": "user", "content": "Never mind."}]
    rendered = render_pair(tokenizer, ContrastPair("", "", prompt=TURNS, negative_prompt=other))
    assert "What now?" in tokenizer.decode(rendered.positive.ids)
    assert "Never mind." in tokenizer.decode(rendered.negative.ids)


def test_a_pair_keeps_its_own_copy_of_the_messages():
    mine = [dict(message) for message in TURNS]
    pair = ContrastPair("a", "b", prompt=mine)
    mine[0]["content"] = "changed"
    assert pair.prompt == TURNS


@pytest.mark.parametrize("given", [tuple(TURNS), np.array(TURNS), [m | {"tool_calls": None} for m in TURNS]])
def test_messages_are_taken_as_tables_give_them(given):
    assert ContrastPair("a", "b", prompt=given) == ContrastPair("a", "b", prompt=TURNS)
    assert load_pairs([{"positive": "a", "negative": "b", "prompt": given}])[0].prompt == TURNS


def test_parts_and_tool_results_are_messages():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]
    assert ContrastPair("a", "b", prompt=parts).prompt == parts
    calls = [{"type": "function", "function": {"name": "find", "arguments": {}}}]
    asked = [TURNS[0], {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "On the table."}]
    assert ContrastPair("a", "b", prompt=asked).prompt == asked


@pytest.mark.parametrize(("prompt", "more", "message"), [
    ([], {}, "The prompt is an empty list"),
    (7, {}, "The prompt is of type int; give a string or a list of messages"),
    ({"role": "user", "content": "x"}, {}, "The prompt is of type dict; give a string or a list"),
    (["Hello"], {}, "Message 1 of the prompt is of type str; it must be a mapping with 'role' and 'content'"),
    ([{"content": "x"}], {}, "Message 1 of the prompt has the role None"),
    ([{"role": "user"}], {}, "Message 1 of the prompt has a content of type NoneType"),
    ([{"role": "user", "content": " "}], {}, "Message 1 of the prompt .user. is empty"),
    ([{"role": "user", "content": 5}], {}, "a content of type int"),
    ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], {}, "a part of type 'image'; only text can"),
    ([{"role": "user", "content": "x", "time": {1}}], {}, "a value that JSON cannot represent"),
    (TURNS[:2], {}, "The last message of the prompt has the role 'assistant'"),
    (WITH_SYSTEM, {"system": "Be rude."}, "a system message of its own, and system='Be rude.' is given, too"),
    (WITH_SYSTEM, {"negative_system": "Be rude."}, "a system message of its own, and system='Be rude.'"),
    (WITH_SYSTEM, {"negative_system": ""}, "a system message of its own, and system=''"),
    (TURNS, {"negative_prompt": WITH_SYSTEM, "system": "Be rude."}, "The negative_prompt begins with a system message"),
    (TURNS, {"system": 3}, "(system message of a prompt|'system') is of type int"),
    (json.dumps(TURNS), {}, "is a conversation written as a string"),
    (str(TURNS), {}, "is a conversation written as a string"),
    (str(TURNS)[:60], {}, "is a conversation written as a string"),
    (json.dumps({"messages": TURNS}), {}, "is a conversation written as a string"),
    (str({"id": 3, "conversations": TURNS}), {}, "is a conversation written as a string"),
    (json.dumps(TURNS[0]), {}, "is a conversation written as a string"),
    (json.dumps([{"name": "Bob", **TURNS[0]}]), {}, "is a conversation written as a string"),
    ('[{"from": "human", "value": "hi"}]', {}, "is a conversation written as a string"),
    ('[{"type": "text", "text": "hi"}]', {}, "is a conversation written as a string"),
    ([TURNS[0], {"role": "assistant", "tool_calls": {"name": "find"}}, TURNS[2]], {}, "tool_calls of type dict; give"),
])  # fmt: skip
def test_malformed_conversations_are_refused(prompt, more, message):
    with pytest.raises(DatasetError, match=message):
        ContrastPair("a", "b", prompt=prompt, **more)
    with pytest.raises(DatasetError, match=f"row 2.*{message}"):
        load_pairs([{"positive": "a", "negative": "b"}, {"positive": "a", "negative": "b", "prompt": prompt, **more}])


@pytest.mark.parametrize("text", [
    '{"a": 1}', "[1, 2, 3]", "[]", "{}", '[{"from": "Rome", "to": "Oslo"}]', '{"messages": 3}', "[INST] hi", "[" * 9999,
    '{"messages": []}', 'What does [{"role": "user", "content": "hi"}] mean?',
])  # fmt: skip
def test_other_texts_in_brackets_are_prompts(text):
    assert ContrastPair("a", "b", prompt=text).prompt == text


def test_conversations_survive_the_disk(tmp_path):
    pairs = ContrastPairDataset("kind", [
        ContrastPair("a", "b", {"n": 1}, prompt=TURNS, system="Be kind."),
        ContrastPair("a", "b", prompt=TURNS, negative_prompt=WITH_SYSTEM),
    ])  # fmt: skip
    pairs.save(tmp_path / "pairs.json")
    save_jsonl(pairs, tmp_path / "pairs.jsonl")
    for loaded in (ContrastPairDataset.load(tmp_path / "pairs.json"), *map(load_pairs, tmp_path.iterdir())):
        assert list(loaded) == list(pairs)
        assert loaded.sha256 == pairs.sha256
    with pytest.raises(DatasetError, match="The prompt of pair 1 is a conversation, which CSV cannot hold"):
        save_csv(pairs, tmp_path / "pairs.csv")


def test_every_turn_counts_in_the_digest():
    other = [TURNS[0], {"role": "assistant", "content": "Oh dear."}, TURNS[2]]
    digests = {ContrastPairDataset("kind", [ContrastPair("a", "b", prompt=prompt)]).sha256 for prompt in (TURNS, other)}
    assert len(digests) == 2


def test_duplicates_and_equal_sides_are_found_among_conversations():
    row = {"positive": "a", "negative": "b", "prompt": TURNS}
    with pytest.raises(DatasetError, match="the same pair as row 1"):
        load_pairs([row, row])
    with pytest.raises(DatasetError, match="both sides are the same text"):
        load_pairs([{"positive": "a", "negative": "a", "prompt": TURNS, "negative_prompt": TURNS}])
    assert len(load_pairs([{"positive": "a", "negative": "a", "prompt": TURNS, "negative_prompt": WITH_SYSTEM}])) == 1


def test_tables_and_checks_read_conversations():
    pairs = ContrastPairDataset("kind", [ContrastPair("a", "b", prompt=TURNS)])
    assert "user: I lost my keys.\nassistant: Oh no.\nuser: What now?" in pairs._repr_html_()
    long = [{"role": "user", "content": "one two three four five six seven eight nine ten"}]
    report = check_pairs([ContrastPair("a", "b", prompt=long), ContrastPair("c", "d", prompt=long)], byte_tokenizer())
    assert [finding.rows for finding in report.findings if finding.measure == "prompts"] == [(1, 2)]


def test_personas_go_before_conversations():
    (pair,) = persona_pairs([TURNS], "Be kind.", "Be rude.")
    assert (pair.prompt, pair.system, pair.negative_system) == (TURNS, "Be kind.", "Be rude.")
