import pytest

from chat_templates import (
    CHANNELS,
    CHATML,
    CUTTING,
    FORGETS_THOUGHTS,
    HYBRID,
    LAST_ONLY,
    LLAMA,
    MISTRAL,
    NO_HEADER,
    NO_SYSTEM,
    OPENS,
    PARTS,
    PARTS_BY_INDEX,
    PARTS_FOR_USERS,
    TOOLS,
    TRIMMING,
    Processor,
    byte_tokenizer,
)
from rotalabs_steer.chat.thoughts import closes_thought, open_thought, without_thoughts
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets import ContrastPair
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import ChatTemplateError, DatasetError, OptionError
from rotalabs_steer.generation.continuation import spoken

QUESTION = [{"role": "user", "content": "Who wrote Faust?"}]
ASKED = [{"role": "system", "content": "Be brief."}, *QUESTION]
TURNS = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Hi"},
]
CALL = {"type": "function", "function": {"name": "find", "arguments": {"what": "keys"}}}
CALLED = [
    {"role": "user", "content": "Please find my keys."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "find", "content": "On the table."},
]


def chat(template, options=None, added=()):
    return ChatTokenizer.of(byte_tokenizer(template, added=added), options)


@pytest.mark.parametrize("template", [PARTS, PARTS_BY_INDEX])
def test_a_template_that_wants_parts_is_given_parts(template):
    text = chat(template).render(ASKED)
    assert "Be brief." in text
    assert "Who wrote Faust?" in text
    parts = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in ASKED]
    assert text == chat(template).tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)


def test_a_template_that_wants_parts_of_users_only_is_given_these():
    text = chat(PARTS_FOR_USERS).render([ASKED[0], *TURNS])
    assert text == "<|system|>Be brief.<|user|>Hi there<|assistant|>Hello!<|user|>Hi<|assistant|>\n"
    assert chat(PARTS_FOR_USERS).prompt(TURNS, response="Four.")


@pytest.mark.parametrize("template", [CHATML, TRIMMING, LLAMA, MISTRAL, FORGETS_THOUGHTS])
def test_a_template_that_takes_texts_is_given_texts(template):
    tokenizer = byte_tokenizer(template)
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert ChatTokenizer.of(tokenizer).render(TURNS) == expected
    in_parts = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in TURNS]
    assert ChatTokenizer.of(tokenizer).render(in_parts) == expected


@pytest.mark.parametrize(("template", "messages", "lost"), [
    (NO_SYSTEM, ASKED, "system message 'Be brief.'"),
    (LAST_ONLY, TURNS, "user message 'Hi there'"),
    (CUTTING, QUESTION, "user message 'Who wrote Faust"),
    ("{% for m in messages %}<|{{ m.role }}|>{% endfor %}", QUESTION, "user message"),
    # The text also stands in the template itself, and in another message.
    (LAST_ONLY, [{"role": "user", "content": "user"}, TURNS[1], TURNS[2]], "user message 'user'"),
    (LAST_ONLY, [{"role": "user", "content": "Hi"}, TURNS[1], TURNS[0]], "user message 'Hi'"),
])  # fmt: skip
def test_a_lost_message_is_an_error(template, messages, lost):
    with pytest.raises(ChatTemplateError, match=f"loses the {lost}.*as a string and as a list of parts"):
        chat(template).render(messages)


def test_texts_that_a_template_changes_on_purpose_are_not_lost():
    spaced = [{"role": "user", "content": "  two\n\n lines  "}]
    assert "two\n\n lines" in chat(TRIMMING).render(spaced)
    escaping = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    assert '\\"quoted\\"\\n' in chat(escaping).render([{"role": "user", "content": '"quoted"\nöß'}])
    switch = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | replace('/no_think', '') }}{% endfor %}"
    assert chat(switch).render([{"role": "system", "content": "/no_think"}, *QUESTION]).startswith("<|system|><|user|>")
    thought = [TURNS[0], {"role": "assistant", "content": "<think>Hm.</think>Hello!"}, TURNS[2]]
    assert "Hm." not in chat(FORGETS_THOUGHTS).render(thought)
    assert "Hello!" in chat(FORGETS_THOUGHTS).render(thought)


def test_an_answer_that_is_cut_is_lost():
    cut = CHATML.replace("m.content", "(m.content[:2] if m.role == 'assistant' else m.content)")
    with pytest.raises(ChatTemplateError, match="loses the assistant message 'Hello!'"):
        chat(cut).render(TURNS)


@pytest.mark.parametrize("call", [
    CALL, CALL["function"], {"id": "1", "function": "find", "arguments": {"what": "keys"}},
    {"function": {"name": "find", "arguments": '{"what": "keys"}'}},
])  # fmt: skip
def test_a_lost_tool_call_is_an_error_though_its_name_stands_elsewhere(call):
    called = [CALLED[0], CALLED[1] | {"tool_calls": [call]}, CALLED[2]]
    with pytest.raises(
        ChatTemplateError, match=r"loses the call of 'find', message 2: .* Write the call into the cont"
    ):
        chat(CHATML).render(called)


def test_a_shown_tool_call_is_rendered_and_lost_arguments_are_an_error():
    shown = '<|user|>Please find my keys.<|assistant|>find({"what": "keys"})<|tool|>findOn the table.'
    assert chat(TOOLS).render(CALLED) == shown
    with pytest.raises(ChatTemplateError, match=r"loses the arguments {'what': 'keys'} of the call of 'find' in mess"):
        chat(TOOLS.replace("({{ call.function.arguments | tojson }})", "")).render(CALLED)
    beside = [CALLED[0], CALLED[1] | {"content": "Let me look."}, CALLED[2]]
    assert "Let me look.find(" in chat(TOOLS).render(beside)
    with pytest.raises(
        ChatTemplateError, match=r"loses the assistant message 'Let me look\.'.*remove it from the message"
    ):
        chat(TOOLS.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")).render(beside)
    with pytest.raises(ChatTemplateError, match=r"The tool call {'type': 'function'} does not name a function"):
        chat(TOOLS).render([CALLED[0], CALLED[1] | {"tool_calls": [{"type": "function"}]}, CALLED[2]])


def test_names_and_thoughts_beside_the_content_are_not_lost():
    named = [QUESTION[0] | {"name": "Bob"}]
    assert "Bob" in chat(TOOLS).render(named)
    with pytest.raises(ChatTemplateError, match=r"loses 'name' of message 1 \(user\), which is 'Bob'"):
        chat(CHATML).render(named)
    thoughtful = [TURNS[0], TURNS[1] | {"reasoning_content": "Hm."}, TURNS[2]]
    assert "Hm." not in chat(TOOLS).render(thoughtful)  # it shows thoughts, but not those of earlier answers
    with pytest.raises(ChatTemplateError, match="loses 'reasoning_content' of message 2"):
        chat(CHATML).render(thoughtful)
    assert chat(CHATML).render(CALLED[2:]) == "<|tool|>\nOn the table.\n<|assistant|>\n"  # the call has the name


def test_a_template_that_refuses_both_forms_says_why():
    with pytest.raises(ChatTemplateError, match=r"roles .'system', 'user'.*: no system role"):
        chat("{{ raise_exception('no system role') }}").render(ASKED)
    with pytest.raises(DatasetError, match="has a part of type 'image'"):
        chat(PARTS).render([{"role": "user", "content": [{"type": "image", "url": "x.png"}]}])


def test_no_second_beginning_is_added_to_a_text_that_has_one():
    tokenizer = byte_tokenizer(LLAMA)
    templated = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    asked = render_pair(tokenizer, ContrastPair("Goethe.", "Schiller.", prompt="Who wrote Faust?"))
    plain = render_pair(tokenizer, ContrastPair(templated + "Goethe.", templated + "Schiller."))
    assert list(plain.positive.ids) == list(asked.positive.ids)
    assert list(plain.positive.ids[:2]).count(tokenizer.bos_token_id) == 1
    assert ChatTokenizer.of(tokenizer).ids("Goethe", special=True) == tuple(tokenizer("Goethe")["input_ids"])


def test_a_beginning_of_several_tokens_is_not_added_twice_either():
    tokenizer = byte_tokenizer(prefix="[gMASK] <sop>")
    once = tokenizer("[gMASK]<sop>Hi", add_special_tokens=False)["input_ids"]
    assert ChatTokenizer.of(tokenizer).ids("[gMASK]<sop>Hi", special=True) == tuple(once)
    assert ChatTokenizer.of(tokenizer).ids("Hi", special=True) == tuple(once)


def test_a_span_of_a_text_with_its_own_beginning_is_found():
    tokenizer = byte_tokenizer()
    pair = ContrastPair("<s>I never do.", "<s>I always do.", positive_span="never", negative_span="always")
    rendered = render_pair(tokenizer, pair)
    start, end = rendered.positive.span
    assert tokenizer.decode(rendered.positive.ids[start:end]) == "never"


def test_a_prompt_that_was_rendered_before_is_refused():
    with pytest.raises(ChatTemplateError, match="begins with the special token '<s>', so a chat template seems"):
        chat(LLAMA).prompt("<s><|user|>\nHello\n<|assistant|>\n")
    assert chat(LLAMA).prompt("What does <s> mean?")


@pytest.mark.parametrize("token", ["<|user|>", "<|start|>", "<|im_start|>"])
def test_special_tokens_of_the_template_alone_show_a_rendered_prompt(token):
    with pytest.raises(ChatTemplateError, match=r"begins with the special token '<.*a chat template seems"):
        chat(CHATML, added=[token]).prompt(f" {token}\nHello")


def test_a_rendered_prompt_is_noticed_without_special_tokens():
    with pytest.raises(ChatTemplateError, match=r"'\[INST\] Hi \[/INST\]' stands between '\[INST\]' and '\[/INST\]'"):
        chat(MISTRAL).prompt("[INST] Hi [/INST]\n")
    for text in ("[INST] is a tag", "What does [INST] mean with [/INST]"):
        assert chat(MISTRAL).prompt(text)
    with pytest.raises(ChatTemplateError, match="stands between 'USER:' and 'ASSISTANT:'"):
        chat(PARTS).prompt("USER: Hi ASSISTANT:")


def test_an_earlier_answer_may_begin_with_thoughts_or_a_call():
    added = ["[THINK]", "[/THINK]", "<|tool_call|>"]
    for content in ("[THINK]Hm.[/THINK]Hello!", "<|tool_call|>find()"):
        assert chat(CHATML, added=added).prompt([TURNS[0], TURNS[1] | {"content": content}, TURNS[2]])


@pytest.mark.parametrize("tag", [
    "<think>", "<thinking>", "<thought>", "[THINK]", "<seed:think>", "◁think▷", "<|START_THINKING|>",
    "<|begin_of_thought|>", "<reasoning>", "<|channel|>analysis<|message|>", "<|channel>thought", "<longcat_think>",
])  # fmt: skip
def test_an_open_block_of_thoughts_is_noticed_in_every_spelling(tag):
    assert open_thought(f"<|assistant|>\n{tag}\n")
    with pytest.raises(ChatTemplateError, match="ends the prompt inside a block of thoughts"):
        chat(CHATML + tag + "\n").prompt("2+2?", response="Four.")


@pytest.mark.parametrize("end", [
    "<think>\n\n</think>\n\n", "[THINK][/THINK]", "◁think▷◁/think▷", "<|START_THINKING|><|END_THINKING|>",
    "<|channel>thought\n<channel|>", "<|channel|>final<|message|>", "<|begin_of_thought|><|end_of_thought|>", "",
    "<|nothink|>",
])  # fmt: skip
def test_a_closed_block_of_thoughts_is_none(end):
    assert not open_thought(f"<|assistant|>\n{end}")
    assert chat(CHATML + end).prompt("2+2?", response="Four.")


@pytest.mark.parametrize(("answer", "said"), [
    ("<think>Hm.</think>\nFour.", "\nFour."),
    ("\n<think>\nHm", None),
    ("[THINK]Hm.[/THINK]Four.", "Four."),
    ("Four.", "Four."),
    ("The tag <think> opens a block.", "The tag <think> opens a block."),
    ("<think>I could write <think> or not.</think>Four.", "Four."),
    ("", ""),
    ("<think>Hm.</think><think>Hm?</think>Four.", "Four."),
    ("</think>Four.", "Four."),
    ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four.", "Four."),
    ("<|channel|>final<|message|>Four.", "Four."),
    ("<|channel|>analysis<|message|>Hm.", None),
    pytest.param("<think></think>" * 2000 + "Four.", "Four.", id="a model in a loop"),
])  # fmt: skip
def test_what_an_answer_says_follows_its_thoughts(answer, said):
    assert without_thoughts(answer) == said


@pytest.mark.parametrize(("tags", "end", "written", "said"), [
    (["[THINK]", "[/THINK]"], "", "[THINK]I refuse[/THINK]Sure!</s>", "Sure!"),
    (["[THINK]", "[/THINK]"], "[THINK]", "I refuse[/THINK]Sure!", "Sure!"),
    (["<|START_THINKING|>", "<|END_THINKING|>"], "", "<|START_THINKING|>No<|END_THINKING|><sop>Sure!<sop>", "Sure!"),
    (
        ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"], "",
        "<|channel|>analysis<|message|>No<|end|><|start|>assistant<|channel|>final<|message|>Sure!<|end|>", "Sure!",
    ),
    (["<|channel|>", "<|message|>"], "", "<|channel|>final<|message|>Sure!", "Sure!"),
    (["<|message|>"], "", "<|message|>Sure!", "Sure!"),
])  # fmt: skip
def test_thoughts_between_special_tokens_are_told_from_the_answer(tags, end, written, said):
    thinker = chat(CHATML + end, added=tags)
    text = thinker.decode(thinker.ids(written, special=False))
    assert spoken(thinker, ["2+2?"], [text]) == (said,)


def test_an_answer_that_ends_in_special_thoughts_is_not_judged():
    thinker = chat(CHATML, added=["[THINK]", "[/THINK]"])
    with pytest.raises(OptionError, match="1 of 1 answers end inside the model's thoughts"):
        spoken(thinker, ["2+2?"], [thinker.decode(thinker.ids("[THINK]I refuse", special=False))])


def test_a_response_is_not_read_as_a_thought():
    tokenizer = byte_tokenizer(OPENS)
    pair = ContrastPair("Four.", "No idea.", prompt="What does <think> mean?")
    with pytest.raises(
        ChatTemplateError, match=r"template_options=\{'enable_thinking': False\} \(--template enable_th"
    ):
        render_pair(tokenizer, pair)
    answered = render_pair(ChatTokenizer.of(tokenizer, {"enable_thinking": False}), pair).positive
    assert tokenizer.decode(answered.ids).endswith("<think>\n\n</think>\n\nFour.")
    with pytest.raises(ChatTemplateError, match="enable_thinking': False"):
        render_pair(ChatTokenizer.of(tokenizer, {"enable_thinking": True}), pair)
    # Without a response, and with one that ends the thoughts itself, nothing is misread.
    assert ChatTokenizer.of(tokenizer).prompt("2+2?")
    assert render_pair(tokenizer, ContrastPair("</think>Four.", "</think>No.", prompt="2+2?"))
    # What a prompt says of thoughts opens none.
    assert render_pair(byte_tokenizer(CHATML), ContrastPair("Four.", "No.", prompt="What does <think> do?"))


def test_a_template_without_an_option_against_thoughts_leaves_two_ways():
    with pytest.raises(
        ChatTemplateError, match=r"no option against it: begin each response.*'</think>'.*or set a token"
    ):
        chat(CHATML + "<think>\n").prompt("2+2?", response="Four.")
    assert chat(CHATML + "<think>\n").prompt("2+2?", response="\n</think>\n\nFour.")
    assert not closes_thought("<think>Hm.</think>Four.")


def test_a_missing_header_is_an_error_where_a_response_follows():
    with pytest.raises(ChatTemplateError, match=r"writes '<\|assistant\|>' before an answer, but not at the end"):
        chat(NO_HEADER).prompt("2+2?", response="Four.")
    assert chat(MISTRAL).prompt("2+2?", response="Four.")  # has none, before answers too


@pytest.mark.parametrize(("template", "header"), [
    (NO_HEADER, r"<\|assistant\|>"),
    (NO_HEADER + "</s>", r"<\|assistant\|>"),
    (NO_HEADER.replace("m.role", "m.role | upper"), r"<\|ASSISTANT\|>"),
    (CHANNELS, r"<\|channel\|>final<\|message\|>"),
    (NO_HEADER.replace("m.role", "m.role | replace('assistant', 'thinker')"), r"<\|thinker\|>"),
    (NO_HEADER.replace("|>", "|>{{ '<think></think>' if m.role == 'assistant' }}"), r"<\|assistant\|>"),
    (PARTS_FOR_USERS.replace("add_generation_prompt", "false"), r"<\|assistant\|>"),
])  # fmt: skip
@pytest.mark.parametrize("turns", [QUESTION, TURNS, [{"role": "user", "content": "What is <|assistant|>?"}]])
def test_a_header_elsewhere_in_the_conversation_does_not_stand_for_a_missing_one(template, header, turns):
    with pytest.raises(ChatTemplateError, match=f"writes '{header}' before an answer, but not at the end"):
        chat(template).prompt(turns, response="Four.")
    assert chat(template).prompt(turns)


def test_thoughts_may_go_before_a_header_in_a_response():
    thought = "<|channel|>analysis<|message|>2+2.<|end|><|start|>assistant<|channel|>final<|message|>Four."
    assert chat(CHANNELS).prompt(TURNS, response=thought)


def test_a_header_that_the_model_writes_itself_begins_the_response():
    final = "{% if m.role == 'assistant' %}<|channel|>final<|message|>{% endif %}"
    template = CHATML.replace("{{ m.content }}", final + "{{ m.content }}")
    with pytest.raises(ChatTemplateError, match="Begin each response with it"):
        chat(template).prompt("2+2?", response="Four.")
    assert chat(template).prompt("2+2?", response="<|channel|>final<|message|>Four.") == chat(template).prompt("2+2?")
    thinks = CHATML.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    )
    assert chat(thinks).prompt("2+2?", response="Four.")


def test_template_options_reach_the_template():
    assert chat(HYBRID, {"enable_thinking": False}).render(QUESTION).endswith("</think>\n\n")
    assert chat(HYBRID).render(QUESTION).endswith("<|assistant|>\n")
    both = ChatTokenizer.of(chat(HYBRID + "{{ effort }}", {"enable_thinking": False}), {"effort": "high"})
    assert both.template_options == {"enable_thinking": False, "effort": "high"}
    assert both.render(QUESTION).endswith("</think>\n\nhigh")


def test_one_of_several_templates_is_chosen_by_name():
    named = {"default": CHATML, "terse": "{% for m in messages %}{{ m.content }}>{% endfor %}"}
    assert chat(named).render(QUESTION).endswith("<|assistant|>\n")
    assert chat(named, {"chat_template": "terse"}).render(QUESTION) == "Who wrote Faust?>"
    with pytest.raises(ChatTemplateError, match=r"several chat templates .a., and none of them is the default"):
        chat({"a": CHATML}).render(QUESTION)


@pytest.mark.parametrize(("options", "message"), [
    ({"enable_thinkin": False}, "never mentions the option 'enable_thinkin'.*Did you mean 'enable_thinking'"),
    ({"date_string": "1 May"}, "never mentions the option 'date_string', so it would do nothing.$"),
    ({"enable_thinking": "False"}, "is the string 'False', which templates take for true"),
    ({"add_generation_prompt": False}, "add_generation_prompt is not an option of a chat template"),
    ({"continue_final_message": True}, "continue_final_message is not an option"),
    ({"tokenize": True}, "tokenize is not an option"),
    ({"enable_thinking": "no"}, "is the string 'no', which templates take for true"),
    ({"enable_thinking": " Off"}, "is the string ' Off', which templates take for true"),
    ({"enable_thinking": 0}, "enable_thinking is 0, but the template expects a boolean"),
    ({"enable_thinking": 1.0}, "enable_thinking is 1.0, but the template expects a boolean"),
    ({"role": "x"}, "never mentions the option 'role'"),
    ({"for": 1}, "never mentions the option 'for'"),
    ({"m": 1}, "never mentions the option 'm'"),
    ({3: 1}, "never mentions the option 3"),
    ({"messages": []}, "messages is not an option of a chat template"),
    ({"raise_exception": None}, "raise_exception is not an option of a chat template"),
    ({"chat_template": 3}, "chat_template is 3; give a template or its name"),
    ({"enable_thinking": object()}, "a value that JSON cannot represent"),
    (["enable_thinking"], "give a mapping"),
])  # fmt: skip
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        chat(HYBRID, options)


def test_texts_and_numbers_that_a_template_compares_an_option_with_are_its_values():
    template = CHATML + "{% if effort == 'off' or budget == 0 %}!{% endif %}{% if strict is true %}?{% endif %}"
    assert chat(template, {"effort": "off"}).render(QUESTION).endswith("!")
    assert chat(template, {"budget": 0}).render(QUESTION).endswith("!")
    assert not chat(template, {"effort": "high", "budget": 3}).render(QUESTION).endswith("!")
    with pytest.raises(OptionError, match="effort is the string 'no', which"):
        chat(template, {"effort": "no"})
    with pytest.raises(OptionError, match="strict is 1, but the template expects a boolean"):
        chat(template, {"strict": 1})


def test_options_are_variables_that_the_template_reads_before_it_sets_them():
    default = "{% if not day is defined %}{% set day = 'Monday' %}{% endif %}{{ day }}{% set fixed = 1 %}{{ fixed }}"
    template = CHATML + default + "{% generation %}{% endgeneration %}"
    assert chat(template, {"day": "Friday"}).render(QUESTION).endswith("Friday1")
    with pytest.raises(OptionError, match="never mentions the option 'fixed'"):
        chat(template, {"fixed": 2})
    with pytest.raises(ChatTemplateError, match="is not valid Jinja: "):
        chat("{% if", {"day": "Friday"})


def test_only_the_template_in_use_knows_options():
    named = {"default": CHATML, "hybrid": HYBRID}
    with pytest.raises(OptionError, match="never mentions the option 'enable_thinking'"):
        chat(named, {"enable_thinking": False})
    chosen = chat(named, {"chat_template": "hybrid", "enable_thinking": False})
    assert chosen.render(QUESTION).endswith("</think>\n\n")


def test_options_need_a_template():
    with pytest.raises(ChatTemplateError, match="has no chat template, as is usual for base models"):
        chat(None, {"enable_thinking": False})


def test_a_processor_stands_for_its_tokenizer_and_its_template_goes_first():
    both = ChatTokenizer.of(Processor(byte_tokenizer(LLAMA), PARTS))
    assert both.render(QUESTION) == "USER: Who wrote Faust? ASSISTANT:"
    own = ChatTokenizer.of(Processor(byte_tokenizer(LLAMA)))
    assert own.render(QUESTION) == ChatTokenizer.of(byte_tokenizer(LLAMA)).render(QUESTION)
    named = ChatTokenizer.of(Processor(byte_tokenizer(LLAMA), {"default": CHATML, "parts": PARTS}))
    assert named.render(QUESTION) == ChatTokenizer.of(byte_tokenizer(CHATML)).render(QUESTION)
    chosen = ChatTokenizer.of(named, {"chat_template": "parts"})
    assert chosen.render(QUESTION) == "USER: Who wrote Faust? ASSISTANT:"
    without = ChatTokenizer.of(Processor(byte_tokenizer(), PARTS))
    assert without.render(QUESTION) == "USER: Who wrote Faust? ASSISTANT:"
    assert (
        without.prompt("Who wrote Faust?")
        == tuple(byte_tokenizer()("USER: Who wrote Faust? ASSISTANT:")["input_ids"])[1:]
    )


@pytest.mark.parametrize("wrong", ["Qwen/Qwen3-4B", None, 3])
def test_what_is_not_a_tokenizer_is_named(wrong):
    with pytest.raises(OptionError, match=r"The tokenizer is .*AutoTokenizer.from_pretrained"):
        ChatTokenizer.of(wrong)
