import copy
import json
import threading

import numpy as np
import pytest
import torch

from rotalabs_steer import ActivationInjector, MultiVectorInjector, SteeringVector, SteeringVectorSet
from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset, load_behavior, load_formality_pairs, save_jsonl
from rotalabs_steer.errors import DatasetError, FileFormatError, OptionError
from rotalabs_steer.evaluation import TunedSteering, tune
from rotalabs_steer.extraction import extract_vectors
from rotalabs_steer.files.records import to_json
from rotalabs_steer.generation.continuation import generate_texts
from rotalabs_steer.judging.scoring import judge_accuracy
from rotalabs_steer.judging.text_judge import TextJudge
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.tuning.candidates import Answers, JudgedTexts
from rotalabs_steer.tuning.options import TuningOptions
from rotalabs_steer.tuning.split_measurer import SplitMeasurer
from rotalabs_steer.tuning.tuner import Tuner, _best_apart

QUICK = {"candidates": 2, "prompts": 2, "max_new_tokens": 4, "judge_by": "words", "show_progress": False}
TINY = QUICK | {"budget": 1e-3}  # what a random model can cost is little


def few(behavior, count):
    dataset = load_behavior(behavior)
    return ContrastPairDataset(behavior, [
        pair for split in ("train", "validation", "test")
        for pair in [p for p in dataset if p.metadata["split"] == split][:count]
    ])  # fmt: skip


def count_letters(texts):
    return np.array([float(len(text)) for text in texts])


def wordy(count):
    """Pairs for the word tokenizer: each side says one of its own words."""
    return ContrastPairDataset("humor", [
        ContrastPair(f"w{20 + n % 3} w{40 + n}", f"w{30 + n % 3} w{40 + n}", prompt=f"w{60 + n} w{80 + n}")
        for n in range(count)
    ])  # fmt: skip


def test_candidate_layers_are_not_neighbours():
    scores = {("last", 3): 1.0, ("response", 4): 0.9, ("last", 5): 0.8, ("response", 9): 0.1, ("last", 12): 0.2}
    assert _best_apart(scores, 3) == [("last", 3), ("last", 5), ("last", 12)], "layer 4 is next to layer 3"
    assert _best_apart({**scores, ("response", 8): 0.95}, 3) == [("last", 3), ("response", 8), ("last", 5)]


@pytest.mark.parametrize("name", ["budget", "candidates", "prompts", "max_new_tokens", "validation_pairs"])
def test_options_out_of_range_are_an_error(name):
    with pytest.raises(OptionError, match=f"{name} is 0; it must be an? (number|integer) above zero"):
        TuningOptions(**{name: 0})


def test_the_judge_learns_the_sides_from_their_words():
    judge = TextJudge.fit(list(load_formality_pairs("train")))
    assert judge_accuracy(judge, list(load_formality_pairs("test"))) > 0.9
    formal, casual = judge(["It is advisable to consult a physician.", "Hey, you'd better grab a doc, okay?"])
    assert formal > 0 > casual
    with pytest.raises(DatasetError, match="do not differ, so no judge can learn"):
        TextJudge.fit([ContrastPair("same", "same", prompt="a", negative_prompt="b")])
    with pytest.raises(DatasetError, match="no words by which to tell the sides apart: '😀'"):
        TextJudge.fit([ContrastPair("😀", "😢")])


@pytest.mark.real_model
def test_a_behaviour_is_tuned(smollm, tokenizer, tmp_path):
    options = QUICK | {"prompts": 4, "max_new_tokens": 12}
    tuned = tune(smollm, tokenizer, few("formality", 8), tmp_path / "formality", **options)
    assert tuned.layer_index in range(8, 24)
    assert len(tuned.first_order_scores) == 30
    assert len(tuned.candidates) == 2
    assert tuned.curve.effect.low > 0
    assert tuned.curve.effect.low > abs(tuned.control.effect.mean), "a random direction does less"
    assert f"layer {tuned.layer_index}: log-odds" in str(tuned)
    assert (tuned.verdict, tuned.answers.change.low) == ("cannot say", None), "four answers are too few"
    injector = MultiVectorInjector(smollm, {"formality": tuned.vectors}, {"formality": 1.0})
    probe = CoherenceProbe(smollm, tokenizer)
    costs = {}
    for strength in (-1.0, 1.0, *tuned.vectors.safe_range):
        injector.set_strength("formality", strength)
        with injector:
            costs[strength] = probe.cost()
    assert max(costs.values()) <= 1.06 * tuned.budget, "the whole safe range stays in the budget"
    bounds = tuned.safe_range.minus, tuned.safe_range.plus
    assert min(bound.strength for bound in bounds) == pytest.approx(1.0)
    assert tuned.vectors.safe_range == (-bounds[0].strength, bounds[1].strength)
    for bound, strength in zip(bounds, tuned.vectors.safe_range, strict=True):
        assert bound.kl == pytest.approx(costs[strength], rel=1e-3)
        if bound.holds == "budget":
            assert bound.kl == pytest.approx(tuned.budget, rel=0.06), "no larger strength stays in the budget"
        assert bound.broken <= tuned.safe_range.broken_unsteered + 0.05
    assert [costs[-1.0], costs[1.0]] == pytest.approx([tuned.curve.cost_at(at).kl for at in (-1.0, 1.0)], rel=1e-3)
    assert 0.7 <= tuned.refinement.cosine < 0.999
    best = max(candidate.answers.change.mean for candidate in tuned.candidates)
    assert tuned.refined is (tuned.refinement.answers.change.mean > best)
    loaded = SteeringVectorSet.load(tmp_path / "formality")
    assert loaded == tuned.vectors
    assert loaded.get_best().layer_index == tuned.layer_index
    assert loaded.metadata["effect"]["low"] > 0
    assert loaded.metadata["steers"] is None
    assert sorted(path.name for path in (tmp_path / "formality").iterdir() if "layer" not in path.name) == [
        "metadata.json", "tuning.json",
    ]  # fmt: skip


@pytest.mark.real_model
def test_answers_in_one_batch_are_those_of_each_strength_and_system_message(smollm, tokenizer):
    drawn = torch.randn(smollm.config.hidden_size, generator=torch.Generator().manual_seed(1))
    vector = SteeringVector("random", 12, drawn, "SmolLM2-135M-Instruct")
    questions = {"Name a fruit.": None, "Who are you?": "You are a pirate."}
    pairs = [ContrastPair("a", "b", prompt=prompt, system=system) for prompt, system in questions.items()]
    together = SplitMeasurer(smollm, tokenizer, None, pairs, 2, 6).answers(vector, 2.0, count_letters)
    for sign in (-1.0, 0.0, 1.0):
        with ActivationInjector(smollm, [vector], sign * 2.0):
            alone = tuple(
                generate_texts(smollm, tokenizer, [prompt], 6, system=system)[0] for prompt, system in questions.items()
            )
        assert together.texts[sign] == alone
        assert together.scores[sign] == tuple(count_letters(alone))
    assert len(set(together.texts.values())) == 3


@pytest.mark.parametrize("stopped_after", [0, 1, 2, 3])
def test_stopped_tuning_goes_on_to_the_same_result(llama, words, tmp_path, monkeypatch, stopped_after):
    pairs = wordy(15)
    whole = tune(llama, words, pairs, **TINY)
    calls = 0

    answers = SplitMeasurer.answers

    def stop(*arguments):
        nonlocal calls
        calls += 1
        if calls > stopped_after:
            raise KeyboardInterrupt
        return answers(*arguments)

    monkeypatch.setattr(SplitMeasurer, "answers", stop)
    with pytest.raises(KeyboardInterrupt):
        tune(llama, words, pairs, tmp_path / "humor", **TINY)
    steps = json.loads((tmp_path / "humor" / "unfinished-tuning.json").read_text())["steps"]
    kept = sum(name.startswith(("layer ", "refinement")) for name in steps)
    assert kept == stopped_after
    with pytest.raises(OptionError, match=r"unfinished-tuning\.json belongs to work with another model, other pairs"):
        tune(llama, words, wordy(16), tmp_path / "humor", **TINY)
    rest = len(whole.candidates) + 2  # the refinement, and the test answers
    calls, stopped_after = 0, stopped_after + rest  # lets the rest through, and counts it
    resumed = tune(llama, words, pairs, tmp_path / "humor", **TINY)
    assert resumed.to_record() == json.loads(json.dumps(whole.to_record())) | {"provenance": whole.provenance}
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(resumed.vectors, whole.vectors, strict=True))
    assert not list((tmp_path / "humor").glob("unfinished*"))
    assert calls == rest - kept, "finished layers are not steered again"


def test_a_finished_tuning_is_read_and_other_work_refused(llama, words, tmp_path):
    pairs = wordy(15)
    first = tune(llama, words, pairs, tmp_path / "humor", **TINY)
    again = tune(llama, words, pairs, tmp_path / "humor", **TINY)
    assert again.to_record() == first.to_record()
    loaded = TunedSteering.load(tmp_path / "humor")
    assert loaded.to_record() == first.to_record()
    assert loaded.vectors == first.vectors
    save_jsonl(pairs, tmp_path / "humor.jsonl")
    by_file = tune(llama, words, tmp_path / "humor.jsonl", tmp_path / "humor", **TINY)
    assert by_file.to_record() == first.to_record()
    with pytest.raises(OptionError, match="holds the tuning of another model, other pairs or other options"):
        tune(llama, words, pairs, tmp_path / "humor", **TINY | {"prompts": 3})
    with pytest.raises(DatasetError, match="There is no file 'humour', and no built-in behaviour of that name"):
        tune(llama, words, "humour")


def test_damaged_records_are_refused(llama, words, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no tuning"):
        TunedSteering.load(tmp_path)
    tune(llama, words, wordy(15), tmp_path, **TINY)
    path = tmp_path / "tuning.json"
    whole = json.loads(path.read_text())
    for change, message in [
        ({"schema_version": 9}, "schema_version 9; this release reads up to 1"),
        ({"curve": {}}, "is not the record of a tuning"),
        ({"behavior": "other"}, "is not about the vectors beside it"),
    ]:
        path.write_text(json.dumps(whole | change))
        with pytest.raises(FileFormatError, match=message):
            TunedSteering.load(tmp_path)
    path.write_text("{")
    with pytest.raises(FileFormatError, match="is not valid JSON"):
        TunedSteering.load(tmp_path)


def retrained(model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.7)
    return model


def test_a_tuning_of_other_weights_at_the_same_path_is_refused(llama, words, tmp_path):
    pairs = wordy(15)
    first = tune(llama, words, pairs, tmp_path / "humor", **TINY)
    with pytest.raises(OptionError, match="a model whose weights, adapters or chat template have changed is another"):
        tune(retrained(llama), words, pairs, tmp_path / "humor", **TINY)
    second = tune(llama, words, pairs, **TINY)
    assert second.provenance["work"] != first.provenance["work"]


def test_a_tuning_with_another_chat_template_is_refused(llama, words, tmp_path):
    tune(llama, words, wordy(15), tmp_path / "humor", **TINY)
    words.chat_template = "w99 " + words.chat_template
    with pytest.raises(OptionError, match="holds the tuning of another model"):
        tune(llama, words, wordy(15), tmp_path / "humor", **TINY)


def test_a_tuner_measures_neutral_text_again_once_the_weights_have_changed(llama, words):
    tuner = Tuner(llama, words, TuningOptions(**{k: v for k, v in TINY.items() if k != "show_progress"}))
    tuner.tune(wordy(15))
    tuned = tuner.tune(wordy(15))
    retrained(llama)
    again = tuner.tune(wordy(15))
    fresh = tune(llama, words, wordy(15), **TINY)
    assert to_json(again.curve) == to_json(fresh.curve)
    assert to_json(again.curve) != to_json(tuned.curve)


@pytest.mark.parametrize(("judge", "said"), [
    (lambda texts: [0.0], r"scores of 2 texts and returned list \[0\.0\]"),
    (lambda texts: np.full(len(texts), np.nan), "returned nan for 'w20 w40'"),
])  # fmt: skip
def test_a_judge_that_cannot_be_used_is_an_error_before_the_model_runs(llama, words, judge, said):
    calls = []
    llama.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(OptionError, match=said):
        tune(llama, words, wordy(15), judge=judge, **TINY)
    assert calls == []


@pytest.mark.parametrize("judge", ["formal", 3, TextJudge, object()])
def test_what_cannot_judge_is_an_error(llama, words, judge):
    with pytest.raises(OptionError, match=r"The judge is .*\. Give a function that returns one number for each text"):
        tune(llama, words, wordy(15), judge=judge, **TINY)


def test_the_accuracy_of_every_judge_is_measured(llama, words):
    def rates_the_positive_side(texts):
        return [sum(word in text.split() for word in ("w20", "w21", "w22")) for text in texts]

    tuned = tune(llama, words, wordy(15), judge=rates_the_positive_side, **TINY)
    assert tuned.judge_accuracy == 1.0
    assert tuned.provenance["judge"].endswith("rates_the_positive_side")
    tuned = tune(llama, words, wordy(15), judge=lambda texts: [0.0] * len(texts), **TINY)
    assert tuned.judge_accuracy == 0.0, "scores that are the same tell nothing apart"


class Signed:
    def __init__(self, sign):
        self.sign = sign

    def score(self, texts):
        return [self.sign * float(len(text)) for text in texts]


def test_another_judge_does_not_get_the_saved_result(llama, words, tmp_path):
    first = tune(llama, words, wordy(15), tmp_path, judge=Signed(1.0).score, **TINY)
    again = tune(llama, words, wordy(15), tmp_path, judge=Signed(1.0).score, **TINY)
    assert again.answers.scores == first.answers.scores
    with pytest.raises(OptionError, match="holds the tuning of another model"):
        tune(llama, words, wordy(15), tmp_path, judge=Signed(-1.0).score, **TINY)


def test_another_chat_template_does_not_get_the_saved_result(llama, words, tmp_path):
    tune(llama, words, wordy(15), tmp_path, **TINY)
    other = copy.deepcopy(words)
    other.chat_template = words.chat_template.replace("[INST]", "[INST] w99")
    assert other.chat_template != words.chat_template
    with pytest.raises(OptionError, match="holds the tuning of another model"):
        tune(llama, other, wordy(15), tmp_path, **TINY)


def test_a_judge_without_readable_content_needs_a_name_to_be_saved(llama, words, tmp_path):
    lock = threading.Lock()

    def judge(texts):
        with lock:
            return [float(len(text)) for text in texts]

    calls = []
    handle = llama.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(OptionError, match=r"cannot be told from other judges by its content \(cannot pickle .*lock"):
        tune(llama, words, wordy(15), tmp_path, judge=judge, **TINY)
    assert calls == []
    handle.remove()
    assert tune(llama, words, wordy(15), judge=judge, **TINY).answers.prompts
    judge.identity = "lengths, version 1"
    first = tune(llama, words, wordy(15), tmp_path, judge=judge, **TINY)
    assert tune(llama, words, wordy(15), tmp_path, judge=judge, **TINY).answers.scores == first.answers.scores


def test_a_judge_may_return_a_list(llama, words):
    listed = tune(llama, words, wordy(15), judge=lambda texts: [len(text) for text in texts], **TINY)
    assert listed.answers.scores == tune(llama, words, wordy(15), judge=count_letters, **TINY).answers.scores


def test_a_judge_at_chance_decides_nothing(llama, words):
    tuned = tune(llama, words, wordy(15), judge=lambda texts: [float(hash(text) % 7) for text in texts], **TINY)
    assert tuned.judge_at_chance
    assert tuned.verdict == "cannot say"
    assert not tuned.steers
    assert "may be chance" in str(tuned)


def test_a_broken_answer_counts_as_unsteered():
    loop, whole = "go on and " * 12, "This answer says one thing after the other."
    rows = {-1.0: (loop, whole), 0.0: (whole, whole), 1.0: (whole, loop)}
    scores = {-1.0: (-9.0, -1.0), 0.0: (0.5, 0.5), 1.0: (2.0, 9.0)}
    answers = Answers(("a", "b"), tuple(JudgedTexts(at, rows[at], scores[at]) for at in rows))
    assert answers.change.mean == pytest.approx(((2.0 - 0.5) / 2 + (0.5 - -1.0) / 2) / 2)
    assert answers.broken == {-1.0: 0.5, 0.0: 0.0, 1.0: 0.5}


def test_without_refinement_the_extracted_vector_is_chosen(llama, words):
    tuned = tune(llama, words, wordy(15), refine=False, token_position="last", **TINY)
    assert (tuned.refinement, tuned.refined) == (None, False)
    assert {candidate.token_position for candidate in tuned.candidates} == {"last"}


def test_an_unknown_kind_of_judge_is_an_error():
    with pytest.raises(OptionError, match="judge_by is 'smell'; use one of: auto, meaning, words"):
        TuningOptions(judge_by="smell")


def test_the_older_name_of_candidates_is_taken(llama, words):
    options = {name: value for name, value in TINY.items() if name != "candidates"}
    assert len(tune(llama, words, wordy(15), finalists=1, **options).candidates) == 1


@pytest.mark.real_model
def test_answers_that_break_bound_the_strength(smollm, tokenizer):
    """At a budget of 1 nat this model repeats itself with the formality vector, on both sides."""
    vector = extract_vectors(smollm, tokenizer, list(load_formality_pairs("train"))[:16], [14], show_progress=False)[14]
    pairs = list(load_formality_pairs("test"))[:6]
    measurer = SplitMeasurer(smollm, tokenizer, CoherenceProbe(smollm, tokenizer), pairs, 6, 32)
    found = measurer.safe_range(vector, 2.0, 1.0)
    for bound in (found.minus, found.plus):
        assert bound.holds == "answers"
        assert bound.broken <= found.broken_unsteered + 0.05
        assert bound.kl < 0.9
