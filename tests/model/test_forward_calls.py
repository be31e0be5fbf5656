"""Calls of every origin: their positions are right, or the call is refused."""

import functools

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, PreTrainedTokenizerFast, StaticCache

from rotalabs_steer import ActivationInjector
from rotalabs_steer.errors import OptionError, PositionError, VectorError
from rotalabs_steer.model.positions import forward_call
from rotalabs_steer.steering import steps
from rotalabs_steer.steering.conditions import Condition
from rotalabs_steer.steering.interventions import Clamp
from rotalabs_steer.steering.schedules import LinearDecay, StopAfter
from rotalabs_steer.steering.scopes import AfterMarker, AfterText, TokenRange, select
from steering.test_generation_paths import oracle_logits
from tiny import count_hooks, make_vector

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
GREEDY = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
MODES = ("last", "first", "prompt", TokenRange(2, 9))
WAYS = ("held from before", "replaced on the instance", "through the class", "through the inner model")


@pytest.fixture
def injected(llama):
    return functools.partial(ActivationInjector, llama, [make_vector(llama, scale=4.0)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "settings", [{}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 2}], ids=str
)
@pytest.mark.parametrize("options", [
    {"injection_mode": "last"}, {"injection_mode": "prompt"}, {"injection_mode": "last", "schedule": StopAfter(3)},
], ids=["last", "prompt", "schedule"])  # fmt: skip
def test_however_generate_is_reached_the_tokens_are_the_same_or_it_is_refused(llama, options, settings, way):
    held = llama.generate
    vector = make_vector(llama, scale=4.0)
    with ActivationInjector(llama, [vector], **options):
        expected = llama.generate(PROMPT, **GREEDY, **settings)
    target = llama.model if way == "through the inner model" else llama
    call = {
        "held from before": held,
        "through the class": functools.partial(type(llama).generate, llama),
        "through the inner model": held,
    }.get(way)
    if way == "replaced on the instance":
        call = llama.generate = functools.partial(held)
    with ActivationInjector(target, [vector], check_model=False, **options):
        if way == "through the inner model":
            with pytest.raises(PositionError, match="Attach to the whole model that generates"):
                call(PROMPT, **GREEDY, **settings)
        else:
            assert torch.equal(call(PROMPT, **GREEDY, **settings), expected)
    assert count_hooks(llama) == (1 if way == "replaced on the instance" else 0)


@pytest.mark.parametrize("mode", MODES)
def test_guidance_steers_each_of_its_two_sequences_by_itself(llama, mode, injected):
    with injected(injection_mode=mode):
        output = llama.generate(PROMPT, **GREEDY, guidance_scale=1.5, output_scores=True, return_dict_in_generate=True)
    length, vector = PROMPT.shape[1], make_vector(llama, scale=4.0)
    for step, scores in enumerate(output.scores):
        sequence = output.sequences[:, : length + step]
        guided = oracle_logits(llama, vector, mode, sequence, length)[-1:].log_softmax(-1)
        free = oracle_logits(llama, vector, mode, sequence[:, length - 1 :], 1)[-1:].log_softmax(-1)
        torch.testing.assert_close(scores, 1.5 * (guided - free) + free, atol=2e-4, rtol=1e-3)


PACKED = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=64)
REQUESTS = [[3, 5, 9, 11, 20, 33, 7], [3, 8, 4], [3, 40, 41, 42, 43]]


def test_continuous_batching_steers_every_token(llama, injected):
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with injected():
        packed = llama.generate_batch(
            REQUESTS, generation_config=settings, continuous_batching_config=PACKED, progress_bar=False
        )
        alone = [
            llama.generate(torch.tensor([ids]), **(GREEDY | {"max_new_tokens": 6}))[0, len(ids) :].tolist()
            for ids in REQUESTS
        ]
    assert [request.generated_tokens for request in packed.values()] == alone


@pytest.mark.parametrize(
    "options", [{"injection_mode": mode} for mode in MODES] + [{"schedule": StopAfter(2)}], ids=str
)
def test_continuous_batching_is_refused_where_positions_matter(llama, injected, options):
    settings = GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with pytest.raises(PositionError, match="Several sequences share one row"), injected(**options):
        llama.generate_batch(
            REQUESTS, generation_config=settings, continuous_batching_config=PACKED, progress_bar=False
        )
    assert count_hooks(llama) == 0


@pytest.mark.parametrize("mode", MODES)
def test_packed_rows_are_refused_where_positions_matter(llama, injected, mode):
    packed = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    with injected(injection_mode=mode), pytest.raises(PositionError, match="position_ids of this call start again"):
        llama(**packed)
    with injected():
        llama(**packed)


def test_position_ids_of_a_padded_batch_are_no_packing(llama, injected):
    ids = torch.tensor([[0, 0, 5, 6, 7], [5, 6, 7, 8, 9]])
    mask = (ids != 0).long()
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    with injected(injection_mode="last"), torch.no_grad():
        found = llama(ids, attention_mask=mask, position_ids=positions).logits[0, 2:]
        torch.testing.assert_close(found, llama(ids[:1, 2:]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_that_hides_padding_is_refused_where_positions_matter(llama, injected, mode):
    real = torch.tensor([[0, 0, 1, 1, 1, 1]]).bool()
    sees = (torch.ones(6, 6).tril().bool()[None, None] & real[:, None, None]) | torch.eye(6).bool()
    mask = torch.zeros(1, 1, 6, 6).masked_fill(~sees, torch.finfo(torch.float32).min)
    with injected(injection_mode=mode), pytest.raises(PositionError, match=r"not of shape \[batch, length\]"):
        llama(torch.tensor([[0, 0, 1, 5, 9, 11]]), attention_mask=mask)


@pytest.mark.parametrize("schedule", [StopAfter(3), LinearDecay(4)], ids=str)
def test_a_schedule_is_refused_where_somebody_decodes_by_hand(llama, injected, schedule):
    with injected(injection_mode="last", schedule=schedule), torch.no_grad():
        first = llama(PROMPT, use_cache=True)
        with pytest.raises(PositionError, match="does not say where the prompt ended"):
            llama(torch.tensor([[12]]), past_key_values=first.past_key_values)


@pytest.mark.parametrize("mode", ["last", "generated", "first", "prompt"])
@pytest.mark.parametrize("static", [True, False])
def test_decoding_by_hand_gives_what_generate_gives(llama, injected, mode, static):
    cache = StaticCache(config=llama.config, max_cache_len=32) if static else DynamicCache(config=llama.config)
    with injected(injection_mode=mode), torch.no_grad():
        generated = llama.generate(PROMPT, **GREEDY, output_logits=True, return_dict_in_generate=True)
        call = llama(PROMPT, past_key_values=cache, use_cache=True)
        for step, expected in enumerate(generated.logits):
            torch.testing.assert_close(call.logits[:, -1], expected, atol=1e-4, rtol=1e-4)
            call = llama(generated.sequences[:, 7 + step : 8 + step], past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("mode", ["last", "generated", "prompt", "first"])
@pytest.mark.parametrize("pass_mask", [True, False])
def test_generate_goes_on_with_a_cache_with_or_without_a_mask(llama, injected, mode, pass_mask):
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    with injected(injection_mode=mode):
        cache = DynamicCache(config=llama.config)
        with torch.no_grad():
            llama(tokens[:, :7], past_key_values=cache)
        mask = {"attention_mask": torch.ones_like(tokens)} if pass_mask else {}
        output = llama.generate(
            tokens, past_key_values=cache, **mask, **GREEDY, output_logits=True, return_dict_in_generate=True
        )
    vector = make_vector(llama, scale=4.0)

    def steer(module, args, hidden):
        columns = {
            "first": [0], "prompt": range(10), "last": [6, *range(9, 30)], "generated": [6, *range(9, 30)],
        }[mode]  # fmt: skip
        hidden[:, [column for column in columns if column < hidden.shape[1]]] += vector.vector
        return hidden

    handle = llama.model.layers[vector.layer_index].register_forward_hook(steer)
    with torch.no_grad():
        expected = llama(output.sequences, use_cache=False).logits[0]
    handle.remove()
    for step, logits in enumerate(output.logits):
        torch.testing.assert_close(logits[0], expected[9 + step], atol=2e-4, rtol=1e-3)


def test_a_mask_and_a_cache_that_disagree_are_refused(llama, injected):
    with injected(injection_mode="last"), torch.no_grad():
        first = llama(PROMPT, use_cache=True)
        with pytest.raises(PositionError, match=r"covers 3 columns, but the cache holds 7 and the call has 2"):
            llama(PROMPT[:, :2], attention_mask=torch.ones(1, 3), past_key_values=first.past_key_values)


def test_a_call_inside_generate_that_is_not_its_own_is_refused(llama, injected):
    def decode(model, input_ids, **kwargs):
        model(input_ids=input_ids.clone())
        return input_ids

    with injected(injection_mode="last"), pytest.raises(PositionError, match="not by the generation loop"):
        llama.generate(PROMPT, custom_generate=decode, **GREEDY)


def words(*pieces):
    vocabulary = {piece: number for number, piece in enumerate(["[U]", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[U]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[U]")


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"num_beams": 3}, {"prefill_chunk_size": 2}], ids=str)
def test_a_marker_is_found_by_its_text_however_it_is_split(llama, settings):
    tokenizer = words("Question:", "what?", "\u0120what?", "Answer:", "\u0120Answer:", "\u0120yes", "\u0120no")
    marker = AfterMarker.of(tokenizer, "Answer:")
    assert isinstance(marker, AfterText)
    rows = [[1, 3, 5, 6], [1, 3, 6, 7]]  # the second row never says it
    alone = []
    for row in rows:
        ids = AfterMarker(tuple(row[2:3])) if 5 in row else "all"
        with ActivationInjector(llama, [make_vector(llama, scale=4.0)], 1.0 if 5 in row else 0.0, ids):
            alone.append(llama.generate(torch.tensor([row]), **GREEDY, **settings)[0].tolist())
    no_marker = {"suppress_tokens": [4, 5]}  # the unsteered row must not come to say it
    with ActivationInjector(llama, [make_vector(llama, scale=4.0)], injection_mode=marker):
        found = llama.generate(torch.tensor(rows), **GREEDY, **settings, **no_marker).tolist()
    assert found[0] == alone[0]
    assert found[1] == alone[1]


def test_a_marker_of_no_text_is_refused():
    with pytest.raises(OptionError, match="at least one character"):
        AfterMarker.of(words("a"), "")


@pytest.mark.parametrize("mode", MODES)
def test_arguments_by_position_are_read_as_those_by_name(llama, injected, mode):
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [5, 6, 7, 8, 9, 10]])
    mask = (ids != 0).long()
    with injected(injection_mode=mode), torch.no_grad():
        assert torch.equal(llama(ids, mask).logits, llama(input_ids=ids, attention_mask=mask).logits)
        inner = llama.model
        assert torch.equal(inner(ids, mask)[0], inner(input_ids=ids, attention_mask=mask)[0])
        with pytest.raises(PositionError, match="start again within a row"):
            inner(ids[1:], None, torch.tensor([[0, 1, 2, 0, 1, 2]]))


def test_packed_rows_with_several_kinds_of_positions_are_refused():
    call = forward_call(1, 5, position_ids=torch.tensor([[[0, 1, 2, 0, 1]]]).expand(3, 1, 5))
    with pytest.raises(PositionError, match="start again within a row"):
        select(call, "first")
    picture = forward_call(1, 5, position_ids=torch.tensor([[[0, 1, 1, 1, 2]]]).expand(3, 1, 5))
    assert select(picture, "first").tolist() == [[True, False, False, False, False]]


def test_a_marker_is_not_found_in_the_padding(llama):
    ids, mask = torch.tensor([[6, 6, 5, 9, 8, 7]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    assert select(forward_call(1, 6, mask=mask, ids=ids), AfterMarker((6,))) is False
    border = torch.tensor([[6, 6, 7, 9, 8, 7]])
    assert select(forward_call(1, 6, mask=mask, ids=border), AfterMarker((6, 7))) is False


@pytest.mark.parametrize("mode", MODES)
def test_embeddings_beside_the_ids_of_the_same_tokens(llama, injected, mode):
    embeddings = llama.get_input_embeddings()(PROMPT).detach()
    with injected(injection_mode=mode):
        expected = llama.generate(PROMPT, **GREEDY)
        found = llama.generate(input_ids=PROMPT, inputs_embeds=embeddings, **GREEDY)
    assert torch.equal(found, expected)


def test_a_cache_of_tokens_that_generate_is_not_told_of_is_refused(llama, injected):
    with torch.no_grad():
        cache = llama(PROMPT[:, :4]).past_key_values
    with (
        injected(injection_mode="first"),
        pytest.raises(PositionError, match="covers 3 columns, but the cache holds 4"),
    ):
        llama.generate(PROMPT[:, 4:], past_key_values=cache, **GREEDY)


def test_a_condition_is_not_decided_on_the_end_of_a_prompt(llama, injected):
    with torch.no_grad():
        cache = llama(PROMPT[:, :4]).past_key_values
    condition = Condition(torch.ones(16), 0, -1.0)
    with injected(condition=condition), pytest.raises(PositionError, match="holds only a part of it"):
        llama.generate(PROMPT, past_key_values=cache, **GREEDY)


def test_strengths_are_one_for_each_prompt(llama):
    prompts = torch.randint(5, 99, (4, 3), generator=torch.Generator().manual_seed(0))
    injector = ActivationInjector(llama, [make_vector(llama)], [0.0, 1.0])
    with injector, pytest.raises(OptionError, match="2 strengths were given for a batch of 4 rows"):
        llama.generate(prompts, **GREEDY)
    with injector, pytest.raises(OptionError, match="2 strengths were given for a batch of 4 rows"):
        llama(prompts)
    with injector:
        pairs = llama.generate(prompts[:2], num_return_sequences=2, num_beams=2, **GREEDY)
        by_name = llama.generate(input_ids=prompts[:2], num_return_sequences=2, num_beams=2, **GREEDY)
        plain = ActivationInjector(llama, [make_vector(llama)], 0.0)
    with plain:
        alone = llama.generate(prompts[:1], num_return_sequences=2, num_beams=2, **GREEDY)
    assert torch.equal(pairs[:2], alone)
    assert torch.equal(pairs, by_name)


def test_rows_that_come_twice_for_guidance_have_their_prompts_strengths():
    call = forward_call(4, 1, prompts=2, is_doubled=True)
    strengths = steps._for_rows(torch.tensor([0.0, 1.0]), call)
    assert strengths.tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(("make", "message"), [
    (lambda m, v: ActivationInjector(m, [v], intervention=lambda d: Clamp(d, value=float("nan"))), "value is nan"),
    (lambda m, v: ActivationInjector(m, [v], intervention=lambda d: None), "The intervention that was made is None"),
    (lambda m, v: ActivationInjector(m, [v], intervention=3), "intervention is 3; use one of"),
    (lambda m, v: ActivationInjector(m, [v], schedule=lambda i: i * float("nan")), "must give a finite factor"),
    (lambda m, v: ActivationInjector(m, [v], schedule=lambda i: 0.5), "must give a finite factor"),
    (lambda m, v: ActivationInjector(m, [v], 1e38), "does not fit into torch.float32"),
    (lambda m, v: ActivationInjector(m.half(), [v], 1e5), "does not fit into torch.float16"),
    (lambda m, v: ActivationInjector(m.half(), [v], 1e-11), "does not fit into torch.float16"),
    (lambda m, v: Condition(torch.full((16,), float("nan")), 0, 0.0), "is finite"),
])  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(llama, make, message):
    vector = make_vector(llama, scale=30.0)
    with pytest.raises((OptionError, VectorError), match=message), make(llama, vector):
        llama(PROMPT)
    assert count_hooks(llama) == 0
