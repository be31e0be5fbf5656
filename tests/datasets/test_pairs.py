import json
from types import MappingProxyType

import pytest

from rotalabs_steer.datasets import ContrastPair, ContrastPairDataset, EvaluationDataset, EvaluationExample
from rotalabs_steer.datasets.pairs import as_dataset
from rotalabs_steer.errors import DatasetError


def test_the_two_argument_form():
    pair = ContrastPair(positive="No.", negative="Yes.")
    assert (pair.prompt, pair.system, pair.metadata) == (None, None, {})
    assert ContrastPair("No.", "Yes.", {"source": "me"}).metadata == {"source": "me"}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"positive": "", "negative": "x"}, "The positive text of a pair is empty"),
    ({"positive": "x", "negative": " \n"}, "The negative text of a pair is empty"),
    ({"positive": "x", "negative": None}, "The negative text of a pair is empty"),
    ({"positive": "x", "negative": "y", "prompt": " "}, "The prompt of a pair is empty"),
    ({"positive": "x", "negative": "y", "system": "s"}, "needs a prompt"),
])  # fmt: skip
def test_pairs_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(DatasetError, match=message):
        ContrastPair(**arguments)


def test_a_dataset_is_a_sequence():
    dataset = ContrastPairDataset("calm", description="d")
    dataset.add_pair("p", "n", source="me")
    dataset.add(ContrastPair("p2", "n2", prompt="q"))
    assert len(dataset) == 2
    assert dataset.positives == ["p", "p2"]
    assert dataset.negatives == ["n", "n2"]
    assert dataset[0].metadata == {"source": "me"}
    assert dataset[:1] == [dataset[0]]


def test_a_notebook_shows_the_first_pairs():
    page = ContrastPairDataset(
        "calm", [ContrastPair(f"<p{n}>", "n", prompt="q" if n else None) for n in range(9)]
    )._repr_html_()
    assert page.startswith("<p>ContrastPairDataset(&#x27;calm&#x27;, 9 pairs)</p><table>")
    assert page.count("&lt;p") == 5
    assert "None" not in page


def test_datasets_survive_the_disk(tmp_path):
    dataset = ContrastPairDataset("calm", [ContrastPair("p", "ü", {"a": 1}, "q", "s", "c")], "d")
    dataset.save(tmp_path / "deep" / "pairs.json")
    loaded = ContrastPairDataset.load(tmp_path / "deep" / "pairs.json")
    assert (list(loaded), loaded.behavior, loaded.description) == (list(dataset), "calm", "d")

    examples = EvaluationDataset("calm", [EvaluationExample("q", False, "c")])
    examples.add_example("r", True)
    examples.save(tmp_path / "examples.json")
    loaded = EvaluationDataset.load(tmp_path / "examples.json")
    assert list(loaded) == list(examples)
    assert [example.prompt for example in loaded.positive_examples] == ["r"]
    assert [example.prompt for example in loaded.negative_examples] == ["q"]


@pytest.mark.parametrize(("document", "message"), [
    ([], "is not a dataset"),
    ({"behavior": "calm"}, "it needs behavior and pairs"),
    ({"behavior": "calm", "pairs": [{"positive": "x"}]}, "row 1: no 'negative'"),
    ({"behavior": "calm", "pairs": [{"positive": "x", "negative": "y"}, "z"]}, "row 2: expected an object"),
    ({"behavior": "calm", "pairs": [{"positive": "", "negative": "y"}]}, "row 1: The positive text"),
    ({"behavior": "calm", "pairs": 3}, "it needs behavior and pairs.*pairs is a int"),
    ({"behavior": "calm", "pairs": [{"positive": "x", "negative": "y", "metadata": "m"}]}, "row 1: 'metadata' is of"),
    ({"behavior": "calm", "pairs": [{"positive": "x", "negative": "y", "negative_span": 3}]}, "row 1: The span 3 does"),
])  # fmt: skip
def test_files_that_are_none_name_the_row(tmp_path, document, message):
    (tmp_path / "f.json").write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=message):
        ContrastPairDataset.load(tmp_path / "f.json")


def test_pairs_are_accepted_as_dicts():
    rows = [
        {"positive": "a", "negative": "b"},
        ContrastPair("c", "d"),
        MappingProxyType({"positive": "e", "negative": "f"}),
    ]
    assert as_dataset(rows).positives == ["a", "c", "e"]
    with pytest.raises(DatasetError, match="pair 0: no 'positive'"):
        as_dataset([{}])
    with pytest.raises(DatasetError, match="dataset of 'custom' is empty"):
        as_dataset([])
