from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003 - a record's hints are read at run time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from made_up_tuning import tuned_steering
from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.evaluation import TunedSteering
from rotalabs_steer.files.records import from_json, read_record, to_json, write_record
from rotalabs_steer.tuning.candidates import Answers
from rotalabs_steer.tuning.curves import LayerCurve


@dataclass(frozen=True, eq=False)
class Inner:
    rows: torch.Tensor
    span: tuple[int, float]


@dataclass(frozen=True, eq=False)
class Outer:
    name: str
    layer_index: int = field(metadata={"key": "layer"})
    inner: tuple[Inner, ...]
    by_layer: Mapping[int, float]
    prompt: str | list[dict[str, Any]]
    ready: bool
    share: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


WHOLE = {
    "name": "x",
    "layer": 3,
    "inner": [{"rows": [[0.5, -1.25]], "span": [1, 2.0]}],
    "by_layer": {"4": 0.25, "7": -1.0},
    "prompt": [{"role": "user", "content": "Hello"}],
    "ready": False,
    "share": 0.5,
    "notes": {"a": [1, {"b": None}]},
}


def test_a_record_comes_back_with_the_types_of_its_fields():
    read = from_json(Outer, WHOLE, "it")
    assert (read.layer_index, read.by_layer, read.ready, read.prompt) == (3, {4: 0.25, 7: -1.0}, False, WHOLE["prompt"])
    assert read.inner[0].rows.equal(torch.tensor([[0.5, -1.25]]))
    assert read.inner[0].span == (1, 2.0)
    assert to_json(read) == WHOLE


def test_keys_of_other_releases_do_not_matter():
    old = {key: value for key, value in WHOLE.items() if key not in ("share", "notes")}
    read = from_json(Outer, old | {"new": 1}, "it")
    assert (read.share, read.notes) == (None, {})


@pytest.mark.parametrize(("change", "said"), [
    ({"name": None}, "it: name is None, not a string"),
    ({"layer": True}, "it: layer is True, not an integer"),
    ({"layer": 2.5}, "it: layer is 2.5, not an integer"),
    ({"share": "0.5"}, "it: share is '0.5', not a finite number"),
    ({"share": 10**400}, "it: share is 10.*, not a finite number"),
    ({"ready": 0}, "it: ready is 0, not true or false"),
    ({"prompt": 3}, "it: prompt is 3, not what belongs there"),
    ({"by_layer": {"four": 1.0}}, "it: by_layer is .*, not what belongs there"),
    ({"by_layer": {"4": None}}, r"it: by_layer\[4\] is None, not a finite number"),
    ({"inner": {}}, "it: inner is {}, not what belongs there"),
    ({"inner": [3]}, r"it: inner\[0\] is malformed: expected an object, found int"),
    ({"inner": [{}]}, r"it: inner\[0\] is malformed: no rows, span"),
    ({"inner": [{"rows": [[1.0], []], "span": [1, 2]}]}, "rows is .*, not a list of finite numbers"),
    ({"inner": [{"rows": [True], "span": [1, 2]}]}, "rows is .*, not a list of finite numbers"),
    ({"inner": [{"rows": [1e300], "span": [1, 2]}]}, "rows is .*, not a list of finite numbers"),
    ({"inner": [{"rows": [1], "span": [1, 2, 3]}]}, "span is .*, not what belongs there"),
    ({"notes": []}, "notes is .*, not what belongs there"),
])  # fmt: skip
def test_a_value_of_another_type_is_named(change, said):
    with pytest.raises(FileFormatError, match=said):
        from_json(Outer, WHOLE | change, "it")


def test_files_are_read_within_limits(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, {"numbers": [0] * 150_000})
    assert len(read_record(path)["numbers"]) == 150_000, "the record of a tuning on many pairs can be read"
    for content, said in [("[" * 100_000, "is not valid JSON"), ('{"a": NaN}', "is not valid JSON"),
                          ("[0" + ",0" * 3_000_000 + "]", "more than 2,000,000. Not parsed")]:  # fmt: skip
        path.write_text(content)
        with pytest.raises(FileFormatError, match=said):
            read_record(path)


@pytest.fixture
def saved(tmp_path):
    tuned_steering().save(tmp_path)
    return tmp_path / "tuning.json"


def test_the_file_of_a_tuning_has_the_keys_that_it_had_before(saved):
    record = json.loads(saved.read_text())
    assert list(record["finalists"][0]) == ["layer", "first_order_score", "unit", "curve", "answers", "token_position"]
    assert list(record["curve"]) == ["layer", "unit", "fractions", "propensities", "costs"]
    assert list(record["answers"]) == ["prompts", "by_strength"]
    assert list(record["answers"]["by_strength"][0]) == ["strength", "texts", "scores"]
    assert {"behavior", "budget_kl", "first_order_scores", "layer", "effect", "steers"} <= record.keys()
    assert TunedSteering.load(saved.parent).to_record() == record


@pytest.mark.parametrize(("part", "key", "value", "said"), [
    ("curve", "fractions", [-1.0, 1.0], "−1, 0 and 1"),
    ("curve", "fractions", [-1.0, 0.0, 0.5, 1.0], "propensities .fractions, pairs. at"),
    ("control", "costs", [], "a cost for each fraction; there are 0 for 3"),
    ("answers", "prompts", ["only one"], "a text and a score for each of 1 prompts"),
    ("answers", "by_strength", [], "a text and a score for each of 8 prompts"),
])  # fmt: skip
def test_a_tuning_whose_numbers_do_not_belong_together_is_refused(saved, part, key, value, said):
    record = json.loads(saved.read_text())
    record[part][key] = value
    saved.write_text(json.dumps(record))
    with pytest.raises(FileFormatError, match=f"is not the record of a tuning: {part} is malformed: .*{said}"):
        TunedSteering.load(saved.parent)


@pytest.mark.parametrize("kind", [LayerCurve, Answers])
def test_a_step_that_is_something_else_is_refused(kind):
    with pytest.raises(FileFormatError, match=r"steps\.json, step 'test': no "):
        from_json(kind, {}, "steps.json, step 'test'")
