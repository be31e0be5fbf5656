import contextvars
import threading

import pytest
import torch

import rotalabs_steer as rs
from rotalabs_steer import SteeredModel, SteeringVectorSet
from rotalabs_steer.errors import ChatTemplateError, DatasetError, ModelNameError, OptionError
from rotalabs_steer.evaluation import generate_response
from rotalabs_steer.generation.continuation import generate_texts
from tiny import count_hooks, make_vector

PROMPT = "How do I boil an egg?"
MESSAGES = [
    {"role": "user", "content": PROMPT}, {"role": "assistant", "content": "In water."},
    {"role": "user", "content": "How long?"},
]  # fmt: skip


@pytest.fixture(scope="module")
def vector(small_model):
    model = SteeredModel.load(str(small_model), _vector(32)).model
    return rs.SteeringVector("calm", 2, _vector(32).vector, model.config._name_or_path)


@pytest.fixture
def steered(small_model, vector):
    return SteeredModel.load(str(small_model), [(vector, 4.0)])


def _vector(width):
    return rs.SteeringVector("calm", 2, torch.randn(width, generator=torch.Generator().manual_seed(3)) * 4, "small")


def plain_answer(steered, prompt=PROMPT, tokens=12):
    return generate_response(steered.model, steered.tokenizer, prompt, tokens)


def test_chat_is_the_steered_answer_and_leaves_the_model_alone(steered):
    plain, hooks = plain_answer(steered), count_hooks(steered.model)
    with rs.steer(steered.model, steered.injector.vector_sets["calm"]) as injector:
        injector["calm"] = 4.0
        expected = plain_answer(steered)
    assert steered.chat(PROMPT, max_new_tokens=12) == expected != plain
    assert plain_answer(steered) == plain
    assert count_hooks(steered.model) == hooks
    assert not rs.steering_of(steered.model)


def test_conversations_and_system_messages_are_rendered_by_the_template(steered):
    answer = steered.chat(MESSAGES, max_new_tokens=12)
    assert answer == steered.chat(tuple(MESSAGES), max_new_tokens=12)
    with steered.injector:
        assert answer == generate_response(steered.model, steered.tokenizer, MESSAGES, 12)
        by_system = generate_response(steered.model, steered.tokenizer, PROMPT, 12, system_prompt="Be brief.")
    assert steered.chat(PROMPT, system="Be brief.", max_new_tokens=12) == by_system


def test_strengths_are_a_mapping_that_acts_at_once(steered):
    plain = plain_answer(steered)
    assert steered.strengths == {"calm": 4.0}
    strong = steered.chat(PROMPT, max_new_tokens=12)
    steered.strengths["calm"] = 0.0
    assert steered.chat(PROMPT, max_new_tokens=12) == plain
    steered.strengths.update(calm=4)
    assert steered.chat(PROMPT, max_new_tokens=12) == strong
    assert repr(steered.strengths) == "{'calm': 4.0}"
    assert repr(steered) == "<SteeredModel LlamaForCausalLM, calm=4.0>"
    with pytest.raises(KeyError, match="No vectors for behaviour 'clam'"):
        steered.strengths["clam"] = 1.0
    with pytest.raises(OptionError, match=r"The vectors of 'calm' cannot be removed\. Set its strength to 0"):
        del steered.strengths["calm"]
    with pytest.raises(OptionError, match="not a finite number"):
        steered.strengths["calm"] = float("inf")
    assert steered.strengths == {"calm": 4.0}


def test_unsteered_is_the_plain_model_in_this_thread_only(steered):
    plain, strong = plain_answer(steered), steered.chat(PROMPT, max_new_tokens=12)
    elsewhere = []
    with steered.unsteered() as same:
        assert same is steered
        assert steered.chat(PROMPT, max_new_tokens=12) == plain
        thread = threading.Thread(target=lambda: elsewhere.append(steered.chat(PROMPT, max_new_tokens=12)))
        thread.start()
        thread.join()
        with steered.unsteered():
            pass
        assert "".join(steered.stream(PROMPT, max_new_tokens=12)).strip() == plain
        later = steered.stream(PROMPT, max_new_tokens=12)
    assert "".join(later).strip() == plain
    assert elsewhere == [strong]
    assert steered.chat(PROMPT, max_new_tokens=12) == strong
    with steered.injector, steered.unsteered():  # what others have attached is off, too
        assert steered.chat(PROMPT, max_new_tokens=12) == plain


def test_unsteered_ends_with_its_block_and_is_for_the_body_of_the_generator_that_opens_it(steered):
    plain, strong = plain_answer(steered), steered.chat(PROMPT, max_new_tokens=12)

    def answers():
        with steered.unsteered():
            yield steered.chat(PROMPT, max_new_tokens=12)
            yield "".join(steered.stream(PROMPT, max_new_tokens=12)).strip()

    for answer in answers():
        assert answer == plain
        assert steered.chat(PROMPT, max_new_tokens=12) == strong
    with steered.unsteered():
        context = contextvars.copy_context()  # what a new asyncio task or asyncio.to_thread does
        assert context.run(steered.chat, PROMPT, max_new_tokens=12) == plain
    assert context.run(steered.chat, PROMPT, max_new_tokens=12) == strong
    with steered.injector:
        with steered.unsteered():
            begun = steered.stream(PROMPT, max_new_tokens=12)
            first = next(begun)
            later = steered.stream(PROMPT, max_new_tokens=12)
        assert (first + "".join(begun)).strip() == "".join(later).strip() == plain


def test_stream_gives_the_answer_in_pieces_while_it_is_written(steered):
    pieces = steered.stream(MESSAGES, max_new_tokens=12)
    first = next(pieces)
    assert first
    rest = list(pieces)
    assert rest
    assert (first + "".join(rest)).strip() == steered.chat(MESSAGES, max_new_tokens=12)
    assert not rs.steering_of(steered.model)


def test_a_reader_who_stops_early_stops_the_model(steered):
    written, writers = [], set()

    def count(ids, scores, **_):
        written.append(ids.shape[1])
        writers.add(threading.current_thread())
        return False

    pieces = steered.stream(PROMPT, max_new_tokens=2000, min_new_tokens=2000, stopping_criteria=[count])
    next(pieces)
    pieces.close()
    (writer,) = writers
    assert not writer.is_alive()
    assert 0 < len(written) < 2000
    assert not rs.steering_of(steered.model)


def test_an_error_of_the_model_reaches_the_reader_of_a_stream(steered):
    def fail(ids, scores, **_):
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        list(steered.stream(PROMPT, max_new_tokens=5, stopping_criteria=[fail]))
    assert not rs.steering_of(steered.model)


def test_mistakes_in_a_stream_are_errors_at_once(steered):
    for messages, error in (("", DatasetError), ([{"role": "user"}], DatasetError)):
        with pytest.raises(error):
            steered.stream(messages)
    with pytest.raises(OptionError, match="max_new_tokens"):
        steered.stream(PROMPT, max_new_tokens=0)


def test_generate_goes_on_with_texts_as_they_are(steered):
    one = steered.generate("Once upon", max_new_tokens=8)
    both = steered.generate(["Once upon", "A much longer beginning of a"], max_new_tokens=8)
    assert both[0] == one
    assert steered.generate([]) == []
    ids = torch.tensor([steered.tokenizer.ids("Once upon", special=True)])
    with steered.injector:
        output = steered.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert one == steered.tokenizer.decode(output[0, ids.shape[1] :])
    with steered.unsteered():
        assert steered.generate("Once upon", max_new_tokens=8) != one


@pytest.mark.parametrize(("texts", "message"), [
    ("", "A text is empty"), (["a", ""], "A text is empty"), ([MESSAGES], "A text is a list; for a conversation, use"),
    (None, "texts is a NoneType; give a list"),
])  # fmt: skip
def test_texts_that_cannot_be_continued_are_errors(steered, texts, message):
    if texts == "" or texts == ["a", ""]:
        assert steered.tokenizer.ids("", special=True) == ()
    with pytest.raises(OptionError, match=message):
        steered.generate(texts)


def test_sampling_draws_and_its_options_need_a_temperature(steered):
    answers = set()
    for seed in range(4):
        torch.manual_seed(seed)
        answers.add(steered.chat(PROMPT, temperature=2.0, top_k=50, max_new_tokens=12))
    assert len(answers) > 1
    with pytest.raises(OptionError, match="top_p does nothing at temperature 0"):
        steered.chat(PROMPT, top_p=0.9)
    with pytest.raises(OptionError, match="temperature"):
        steered.chat(PROMPT, temperature=-1)


@pytest.mark.parametrize(("option", "advice"), [
    ({"num_return_sequences": 2}, "Ask several times"), ({"return_dict_in_generate": True}, "injector.scoped"),
    ({"streamer": object()}, "Use .stream"), ({"max_length": 5}, "Give max_new_tokens"),
])  # fmt: skip
def test_options_that_give_something_else_than_an_answer_are_errors(steered, option, advice):
    for call in (steered.chat, steered.generate, steered.stream):
        with pytest.raises(OptionError, match=f"{next(iter(option))} is not an option here.*{advice}"):
            call(PROMPT, **option)


def test_a_model_and_a_tokenizer_in_hand(smollm, tokenizer):
    model = SteeredModel(smollm, tokenizer, make_vector(smollm, 14, 0.0), check_model=False, scope="generated")
    assert model.injector.scope == "generated"
    assert model.chat(PROMPT, max_new_tokens=8) == generate_texts(smollm, tokenizer, [PROMPT], 8)[0]
    with pytest.raises(OptionError, match="never mentions the option 'enable_thinking'"):
        SteeredModel(smollm, tokenizer, make_vector(smollm), check_model=False, template_options={"enable_thinking": 0})


def test_load_takes_options_of_from_pretrained_and_template_options(small_model, vector):
    assert SteeredModel.load(str(small_model), vector, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(OptionError, match="messages is not an option of a chat template"):
        SteeredModel.load(str(small_model), vector, template_options={"messages": []})


def test_mistakes_in_vectors_are_errors_before_the_model_is_looked_for(small_model, vector):
    with pytest.raises(FileNotFoundError, match="There are no steering vectors at nowhere"):
        SteeredModel.load("no/model", "nowhere")
    with pytest.raises(OptionError, match="Unknown scope 'middle'"):
        SteeredModel.load("no/model", vector, scope="middle")
    with pytest.raises(ModelNameError, match=r"There is no folder \./nothing"):
        SteeredModel.load("./nothing", vector)


def test_a_base_model_without_a_template_generates_but_does_not_chat(steered, vector):
    steered.tokenizer.tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        steered.chat(PROMPT)
    assert steered.generate("Once", max_new_tokens=2)


@pytest.mark.real_model
def test_the_sample_model_by_its_name(tmp_path):
    from rotalabs_steer.datasets import load_formality_pairs

    bare = SteeredModel.load("sample", rs.SteeringVector("none", 16, torch.zeros(576), "SmolLM2-135M-Instruct"))
    vectors = rs.extract_vectors(bare.model, bare.tokenizer, load_formality_pairs("train"), [16], show_progress=False)
    assert isinstance(vectors, SteeringVectorSet)
    vectors.save(tmp_path / "formality")
    steered = SteeredModel(bare.model, bare.tokenizer, f"{tmp_path}/formality=-1")
    ask = "Write a short note to my neighbour about the noise."
    casual = steered.chat(ask, max_new_tokens=20)
    steered.strengths["formality"] = 1
    formal = "".join(steered.stream(ask, max_new_tokens=20))
    assert casual.startswith("Hey")
    assert formal.startswith("Dear")
