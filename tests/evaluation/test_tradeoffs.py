import json

import pytest

from rotalabs_steer.errors import FileFormatError, OptionError, VectorError
from rotalabs_steer.evaluation import (
    Estimate,
    Sampling,
    TradeoffResult,
    analyze_tradeoffs,
    find_optimal_strength,
    load_analysis_metadata,
    load_analysis_results,
    save_analysis_results,
)
from tiny import count_hooks, make_vector

OLD = {
    "strength": 1.0,
    "target_behavior_rate": 0.9,
    "false_positive_rate": 0.1,
    "coherence_score": 0.8,
    "helpfulness_score": 0.7,
    "latency_ms": 12.5,
    "num_samples": 20,
}


def result(strength, target=1.0, false=0.0, coherence=None, **more):
    return TradeoffResult(strength, target, false, coherence, None, 1.0, 10, **more)


@pytest.fixture
def measured(llama, words, naming):
    vector, named = naming(llama)
    return analyze_tradeoffs(
        llama,
        words,
        vector,
        ["w30 w31", "w32", "w33"],
        ["w40", "w41 w42"],
        named,
        helpfulness_fn=lambda prompt, response: None if prompt == "w40" else 0.5,
        strengths=[0.0, 50.0],
        show_progress=False,
        sampling=Sampling(max_new_tokens=4, seed=7),
    )


def test_each_strength_is_measured_with_intervals_and_tests(measured, llama):
    unsteered, steered = measured
    assert (unsteered.strength, unsteered.target_behavior_rate, unsteered.kl_cost) == (0.0, 0.0, 0.0)
    assert (steered.target_behavior_rate, steered.false_positive_rate) == (1.0, 1.0)
    assert steered.target_interval.low == pytest.approx(0.4385, abs=1e-3)
    assert (steered.target_change.difference.mean, steered.target_change.p_value) == (1.0, 0.25)
    assert (steered.target_change.seed, steered.seed) == (7, 7)
    assert steered.false_positive_change.pairs == 2
    assert unsteered.target_change.p_value == 1.0
    assert steered.coherence_score is None
    assert (steered.helpfulness_score, steered.helpfulness_interval) == (0.5, Estimate(0.5, None, None))
    assert steered.kl_cost > 0
    assert steered.num_samples == 5
    assert steered.target_outcomes == (True,) * 3
    assert steered.latency_ms > 0 < steered.tokens_per_second
    assert steered.text.distinct_1 < unsteered.text.distinct_1
    assert count_hooks(llama) == 0


def test_without_control_prompts_there_is_no_false_positive_rate(llama, words, naming):
    vector, named = naming(llama)
    (only,) = analyze_tradeoffs(
        llama, words, vector, ["w30"], [], named, strengths=[1.0], show_progress=False, sampling=Sampling(2)
    )
    assert (only.false_positive_rate, only.false_positive_interval, only.false_positive_change) == (None, None, None)


def test_the_system_prompt_reaches_the_model(llama, words, naming, monkeypatch):
    vector, named = naming(llama)
    seen = []
    generate = llama.generate
    monkeypatch.setattr(llama, "generate", lambda **given: seen.append(given["input_ids"]) or generate(**given))
    analyze_tradeoffs(
        llama, words, vector, ["w30"], [], named, None, None, [0.0], False, "w99", sampling=Sampling(max_new_tokens=2)
    )
    assert "w99" in words.decode(seen[0][0])


def test_what_cannot_be_analyzed_is_an_error(llama, words, naming):
    vector, named = naming(llama)
    with pytest.raises(OptionError, match="Nothing to measure: 0 prompts, 1 strengths"):
        analyze_tradeoffs(llama, words, vector, [], [], named, strengths=[1.0])
    with pytest.raises(OptionError, match="Nothing to measure: 1 prompts, 0 strengths"):
        analyze_tradeoffs(llama, words, vector, ["w30"], [], named, strengths=[])
    with pytest.raises(VectorError):
        narrow = type(vector)("t", 1, vector.vector[:4], "tiny")
        analyze_tradeoffs(llama, words, narrow, ["w30"], [], named, strengths=[1.0])
    with pytest.raises(OptionError):
        analyze_tradeoffs(llama, words, vector, ["w30"], [], named, strengths=[float("nan")])


def test_the_best_strength_keeps_the_coherence_budget():
    results = [
        result(0.0, 0.1, kl_cost=0.0),
        result(0.5, 0.92, kl_cost=0.1),
        result(1.0, 0.95, kl_cost=0.19),
        result(1.5, 1.0, kl_cost=0.5),
    ]
    assert find_optimal_strength(results) == 1.0
    assert find_optimal_strength(results, max_kl_cost=None) == 1.5
    assert find_optimal_strength(results, max_kl_cost=0.1) == 0.5
    assert find_optimal_strength(results, 0.0, max_kl_cost=0.0) == 0.0


def test_of_equal_rates_the_weakest_strength_is_chosen():
    results = [result(strength, 0.95, kl_cost=0.1) for strength in (-2.0, 1.5, 0.75, -1.0)]
    assert find_optimal_strength(results) == 0.75


def test_each_limit_holds():
    assert find_optimal_strength([result(1.0, 0.9, 0.1, 0.7)]) == 1.0
    for worse in (result(1.0, 0.89, 0.1, 0.7), result(1.0, 0.9, 0.11, 0.7), result(1.0, 0.9, 0.1, 0.69)):
        with pytest.warns(UserWarning, match="No strength meets the limits"):
            assert find_optimal_strength([worse]) is None


def test_it_says_why_no_strength_qualifies():
    results = [result(0.5, 0.2, 0.0, kl_cost=0.1), result(2.0, 1.0, 0.5, 0.3, kl_cost=0.9), result(3.0, None, None)]
    with pytest.warns(UserWarning, match="No strength") as warned:
        assert find_optimal_strength(results) is None
    assert str(warned[0].message) == (
        "No strength meets the limits. 0.5: target rate 0.20 < 0.9; "
        "2: false-positive rate 0.50 > 0.1, coherence 0.30 < 0.7, KL cost 0.90 > 0.2; "
        "3: target rate not measured, false-positive rate not measured, coherence not measured."
    )
    with pytest.warns(UserWarning, match="there are no results"):
        assert find_optimal_strength([]) is None
    assert find_optimal_strength(results[2:], None, None, None, max_kl_cost=None) == 3.0


def test_results_come_back_from_a_file_as_they_were(measured, tmp_path):
    path = tmp_path / "new" / "analysis.json"
    save_analysis_results(measured, path, {"model": "tiny"})
    assert load_analysis_results(path) == measured
    assert load_analysis_metadata(path) == {"model": "tiny"}
    assert [child.name for child in path.parent.iterdir()] == ["analysis.json"]
    assert json.loads(path.read_text())["schema_version"] == 1


def test_a_file_of_1_2_loads(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"results": [OLD], "metadata": {}}))
    assert load_analysis_results(path) == [TradeoffResult(**OLD)]
    assert load_analysis_metadata(path) == {}


def test_unknown_keys_are_kept(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"results": [OLD | {"note": [1]}]}))
    (loaded,) = load_analysis_results(path)
    assert loaded.extra == {"note": [1]}
    save_analysis_results([loaded], path)
    assert json.loads(path.read_text())["results"][0]["note"] == [1]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a JSON list, expected an object"),
        ('{"results": {}}', "needs an object with a list of 'results'"),
        ('{"schema_version": 2, "results": []}', "schema_version 2; this release reads up to 1"),
        ('{"schema_version": "1", "results": []}', "schema_version '1'"),
        ('{"results": [3]}', "result 1: expected an object, found int"),
        ('{"results": [{"strength": 1}]}', "result 1: no coherence_score, false_positive_rate"),
        (json.dumps({"results": [OLD, OLD | {"strength": None}]}), "result 2: strength is None, not a finite number"),
        (json.dumps({"results": [OLD | {"latency_ms": float("nan")}]}), "is not valid JSON: NaN"),
        (json.dumps({"results": [OLD | {"num_samples": True}]}), "num_samples is True, not an integer"),
        (json.dumps({"results": [OLD | {"target_interval": {"mean": 1}}]}), "target_interval is malformed"),
        (json.dumps({"results": [OLD | {"target_change": {}}]}), "target_change is malformed"),
    ],
)
def test_a_file_that_is_no_analysis_is_refused(tmp_path, document, message):
    path = tmp_path / "a.json"
    path.write_text(document)
    with pytest.raises(FileFormatError, match=message):
        load_analysis_results(path)


def test_metadata_that_is_not_an_object_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"results": [], "metadata": [1]}')
    with pytest.raises(FileFormatError, match=r"its metadata is \[1\], not an object"):
        load_analysis_metadata(path)


@pytest.mark.parametrize("metadata", [{"when": object()}, {"rate": float("nan")}])
def test_what_json_cannot_hold_leaves_the_file_alone(tmp_path, metadata):
    path = tmp_path / "a.json"
    save_analysis_results([result(1.0)], path)
    before = path.read_bytes()
    with pytest.raises(OptionError, match=r"cannot be written as JSON: .* Use plain numbers"):
        save_analysis_results([], path, metadata)
    assert path.read_bytes() == before


def test_what_follows_the_thoughts_is_judged(llama, words, scripted, monkeypatch):
    words.add_tokens(["<think>", "</think>"])
    monkeypatch.setattr(llama, "generate", scripted("<think> Sorry, no. </think> Sure, here").generate)
    judged = []
    (only,) = analyze_tradeoffs(
        llama,
        words,
        make_vector(llama),
        ["w30"],
        ["w31"],
        lambda text: judged.append(text) or "Sorry" in text,
        coherence_fn=lambda text: float(text == "Sure, here"),
        helpfulness_fn=lambda prompt, response: float(response == "Sure, here"),
        strengths=[0.0],
        show_progress=False,
    )
    assert judged == ["Sure, here"] * 2
    assert (only.target_behavior_rate, only.coherence_score, only.helpfulness_score) == (0.0, 1.0, 1.0)
