import codecs
import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rotalabs_steer.datasets import (
    ContrastPair,
    ContrastPairDataset,
    load_behavior,
    load_pairs,
    persona_pairs,
    read_rows,
    save_csv,
    save_jsonl,
)
from rotalabs_steer.datasets.loading import pairs_from, read_pairs
from rotalabs_steer.datasets.pairs import as_dataset
from rotalabs_steer.errors import DatasetError, OptionError

CAA = {"question": "Choose.\n\nChoices:\n(A) Yes\n(B) No", "answer_matching_behavior": " (B)"}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_with_every_field(tmp_path):
    rows = [
        {"prompt": "q", "system": "s", "positive": "p", "negative": "n", "category": "c", "split": "test", "id": 7},
        {"positive": "p2", "negative": "n2"},
    ]
    path = write(tmp_path / "calm.jsonl", "\ufeff" + "".join(json.dumps(row) + "\n\n" for row in rows))
    dataset = load_pairs(path)
    assert dataset.behavior == "calm"
    assert list(dataset) == [
        ContrastPair("p", "n", {"split": "test", "id": 7}, "q", "s", "c"),
        ContrastPair("p2", "n2"),
    ]
    assert load_pairs(str(path), "other").behavior == "other"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_whatever_its_delimiter(tmp_path, delimiter):
    rows = [["prompt", "positive", "negative", "split"], ["q", 'say "a"\nb', "c, d; e\tf", "train"], ["", "g", "h", ""]]
    with (tmp_path / "calm.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    assert list(load_pairs(tmp_path / "calm.csv")) == [
        ContrastPair('say "a"\nb', "c, d; e\tf", {"split": "train"}, "q"), ContrastPair("g", "h"),
    ]  # fmt: skip


def test_the_multiple_choice_layout_of_caa(tmp_path):
    rows = [
        {**CAA, "answer_not_matching_behavior": " (A)"},
        {"question": "Are you shy?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
    ]
    expected = [
        ContrastPair("(B)", "(A)", prompt=CAA["question"], positive_span="B", negative_span="A"),
        ContrastPair("Yes", "No", prompt="Are you shy?"),
    ]
    assert list(load_pairs(write(tmp_path / "shyness.json", json.dumps(rows)))) == expected
    assert list(load_pairs(write(tmp_path / "s.jsonl", "\n".join(map(json.dumps, rows))))) == expected


def test_our_json_layout_keeps_behaviour_and_description(tmp_path):
    dataset = ContrastPairDataset("calm", [ContrastPair("p", "n", {"split": "train"}, "q")], "Stays calm.")
    dataset.save(tmp_path / "x.json")
    loaded = load_pairs(tmp_path / "x.json")
    assert (list(loaded), loaded.behavior, loaded.description) == (list(dataset), "calm", "Stays calm.")


def test_json_lines_under_the_name_json(tmp_path):
    path = write(tmp_path / "x.json", '{"positive": "a", "negative": "b"}\n{"positive": "c", "negative": "d"}\n')
    assert load_pairs(path).positives == ["a", "c"]


class HubDataset(list):
    """Stands for a `datasets.Dataset`: iterating gives one mapping a row."""


def test_rows_that_are_in_memory():
    rows = HubDataset([{"chosen": "a", "rejected": "b", "source": "web"}])
    columns = {"positive": "chosen", "negative": "rejected"}
    assert list(load_pairs(rows, columns=columns)) == [ContrastPair("a", "b", {"source": "web"})]
    pair = ContrastPair("x", "y", prompt="q")
    assert list(load_pairs([("a", "b"), pair], "calm")) == [ContrastPair("a", "b"), pair]
    dataset = load_behavior("refusal", "test")
    loaded = load_pairs(dataset)
    assert (list(loaded), loaded.behavior, loaded.description) == (list(dataset), "refusal", dataset.description)


@pytest.mark.parametrize(("content", "message"), [
    (b'{"positive": "", "negative": "n"}', r"x.jsonl, row 1: The positive text of a pair is empty \(''\)"),
    (b'{"positive": "p", "negative": null}', "row 1: The negative text of a pair is empty"),
    (b'{"positive": "p", "negative": "p "}', r"row 1: both sides are the same text \('p'\)"),
    (b'{"positive": "p"}', r"row 1: no 'negative'; there are: positive\. Name a column .* --column positive=chosen"),
    (b'{"positive": "p", "negative": 3}', "row 1: 'negative' is of type int, expected a string"),
    (b'{"positive": [{"role": "user", "content": "p"}], "negative": "n"}', "type list, .* the content of the last one"),
    (b'{"positive": "p", "negative": "n", "metadata": "m"}', "'metadata' is of type str, expected an object"),
    (b'{"positive": "p", "negative": "n", "prompt": " "}', "row 1: The prompt of a pair is empty"),
    (b'{"positive": "p", "negative": "n"', "row 1: not valid JSON: .*delimiter"),
    (b'["p", "n"]', "row 1: expected an object with 'positive' and 'negative', found a list"),
    (b'{"positive": "caf\xe9", "negative": "n"}', "row 1: not UTF-8: byte 0xe9 at character 18. Save the"),
])  # fmt: skip
def test_a_faulty_row_is_named_with_its_reason(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message) as caught:
        load_pairs(write(tmp_path / "x.jsonl", content))
    assert "(1 of 1 rows cannot be used.)" in str(caught.value)


@pytest.mark.parametrize(("row", "message"), [
    (b"Yes, sir,No", r"x.csv, row 2 \(line 4\): 3 values for 2 columns; put quotes around a text with commas"),
    (b"Yes", "1 values for 2 columns"),
    (b"caf\xe9,No", "not UTF-8: byte 0xe9. Save the file"),
    (b",No", "The positive text of a pair is empty"),
    (b'"Y"es,No', "not valid CSV: .* is a quote missing"),
    (b'"Yes,No', "not valid CSV: unexpected end of data"),
])  # fmt: skip
def test_a_faulty_csv_row_is_named_with_its_line(tmp_path, row, message):
    path = write(tmp_path / "x.csv", b'positive,negative\n"a\nb",c\n' + row + b"\n")
    with pytest.raises(DatasetError, match=message):
        load_pairs(path)
    assert [pair.positive for pair in read_pairs(path).pairs] == ["a\nb"]


def test_all_faults_come_together(tmp_path):
    rows = [*({"positive": "p", "negative": "n", "prompt": f"q{n}"} for n in range(3)), *([{"good": "p"}] * 9)]
    rows += [{"positive": "p", "negative": "p"}, *({"positive": f"p{n}", "negative": n} for n in range(2))]
    rows += [{"positive": "p", "negative": "n", "prompt": f"q{n}"} for n in range(3)]
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError) as caught:
        load_pairs(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 15 of 18 rows cannot be used."
    assert lines[1].startswith("  rows 4, 5, 6, 7, 8 and 4 more: no 'positive'; there are: good.")
    assert lines[2] == "  row 13: both sides are the same text ('p')."
    assert lines[3] == "  rows 14, 15: 'negative' is of type int, expected a string."
    assert lines[4] == "  row 16: the same pair as row 1."
    assert lines[-1] == "  and 1 more; `rotalabs-steer datasets check FILE` lists them all."
    reading = read_pairs(path)
    assert (len(reading.pairs), reading.rows, len(reading.problems)) == (3, (1, 2, 3), 15)


def test_duplicates_can_be_kept():
    rows = [("a", "b"), ("c", "d"), ("a", "b")]
    with pytest.raises(DatasetError, match="row 3: the same pair as row 1"):
        load_pairs(rows)
    assert len(load_pairs(rows, keep_duplicates=True)) == 3


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.jsonl", b"", "x.jsonl is empty: it has no rows"),
    ("x.jsonl", b"\n\n", "x.jsonl has no rows: a dataset needs at least one pair"),
    ("x.csv", b"positive,negative\n", "x.csv has no rows"),
    ("x.csv", b"positive,positive\na,b\n", "x.csv has two columns with the name 'positive'"),
    ("x.csv", codecs.BOM_UTF16_LE + "positive".encode("utf-16-le"), "x.csv is encoded as UTF-16. Save the file"),
    ("x.json", b'[{"positive": "p",\n}]', "x.json is not valid JSON: .* line [12]"),
    ("x.json", b'[\n"\xe9"]', "x.json, line 2: not UTF-8: byte 0xe9"),
    ("x.json", b"[" * 100_000, "x.json is not valid JSON"),
    ("x.json", b'{"rows": []}', "x.json holds an object without a list of rows; expected a list of objects"),
    ("x.json", b"3", "x.json holds a number without a list of rows"),
    ("x.parquet", b"PAR1", r"x.parquet is not a kind of file that can be read: use .jsonl, .* the library `datasets`"),
])  # fmt: skip
def test_files_that_cannot_be_read_at_all(tmp_path, name, content, message):
    with pytest.raises(DatasetError, match=message):
        load_pairs(write(tmp_path / name, content))


def test_sources_that_hold_no_rows():
    with pytest.raises(
        DatasetError, match=r"got a mapping with 'train', 'test'. Choose .* load_pairs\(dataset\['train'"
    ):
        load_pairs({"train": [], "test": []})
    with pytest.raises(DatasetError, match="row 2: expected a mapping, a ContrastPair or two strings, found int"):
        load_pairs([("a", "b"), 3])
    with pytest.raises(DatasetError, match="The list has no rows"):
        load_pairs([])
    with pytest.raises(OptionError, match=r"Unknown field 'postive' in columns. Use: positive, negative"):
        load_pairs([], columns={"postive": "chosen"})

    class Table:
        def iterrows(self):
            raise AssertionError

    with pytest.raises(DatasetError, match=r"got a table. Pass its rows: load_pairs\(table.to_dict\('records'\)\)"):
        load_pairs(Table())


def test_rows_stream(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"positive": "p", "negative": "n"}\n' * 100_000 + "{")
    rows = read_rows(path)
    first = next(rows)
    assert (first.number, first.place, first.values) == (1, f"{path}, row 1", {"positive": "p", "negative": "n"})
    last = first
    for row in rows:
        last = row
    assert last.number == 100_001
    assert last.problem.startswith("not valid JSON")


texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() and "\0" not in text)
saved = st.builds(
    ContrastPair,
    positive=texts,
    negative=texts,
    prompt=texts,
    system=st.none() | texts,
    category=st.just("") | texts,
    metadata=st.dictionaries(st.sampled_from(["split", "id", "note", "positive"]), texts),
    negative_prompt=st.none() | texts,
)


@given(st.lists(saved, min_size=1, max_size=4))
def test_what_is_saved_loads_the_same(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("saved")
    pairs = [pair for pair in pairs if pair.positive.strip() != pair.negative.strip()] or [ContrastPair("a", "b")]
    save_jsonl(pairs, folder / "deep" / "x.jsonl")
    assert list(load_pairs(folder / "deep" / "x.jsonl", keep_duplicates=True)) == pairs


def test_csv_keeps_everything_that_is_text(tmp_path):
    pairs = [*load_behavior("tool_restraint", "test"), *persona_pairs(["Who are you?"], "Be bold.", "Be shy.")]
    save_csv(pairs, tmp_path / "x.csv")
    assert list(load_pairs(tmp_path / "x.csv")) == pairs
    with pytest.raises(DatasetError, match=r"Pair 1 has an empty negative_system, .* Use JSON Lines"):
        save_csv(persona_pairs(["Who are you?"], "Be bold.", ""), tmp_path / "y.csv")
    save_jsonl(persona_pairs(["Who are you?"], "Be bold.", ""), tmp_path / "y.jsonl")
    assert load_pairs(tmp_path / "y.jsonl")[0].negative_system == ""


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_files_of_every_kind_of_line_end_are_read(tmp_path, ending):
    rows = ["positive,negative,prompt", 'yes,no,"one, two"', "si,nein,q"]
    (tmp_path / "pairs.csv").write_bytes(ending.join(rows).encode() + ending.encode())
    lines = ['{"positive": "yes", "negative": "no", "prompt": "one, two"}', '{"positive": "si", "negative": "nein"}']
    (tmp_path / "pairs.jsonl").write_bytes(ending.join(lines).encode())
    for name in ("pairs.csv", "pairs.jsonl"):
        reading = read_pairs(tmp_path / name)
        assert [(pair.positive, pair.negative) for pair in reading.pairs] == [("yes", "no"), ("si", "nein")]
        assert reading.pairs[0].prompt == "one, two"
        assert reading.rows == (1, 2)


def test_line_ends_inside_a_cell_stay(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(b'positive,negative\r\n"a\nb","c\r\nd"\r\n')
    assert (load_pairs(tmp_path / "pairs.csv")[0].positive, load_pairs(tmp_path / "pairs.csv")[0].negative) == (
        "a\nb",
        "c\r\nd",
    )


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: load_pairs(None), DatasetError, "Expected a list of pairs, got a NoneType"),
    (lambda: load_pairs(5), DatasetError, "got a int"),
    (lambda: load_pairs([("a", "b")], columns="positive"), OptionError, "columns is 'positive'; give the column"),
    (lambda: as_dataset("formality"), DatasetError, "got 'formality'. Load them first"),
    (lambda: as_dataset(Path("x.jsonl")), DatasetError, r"load_pairs\(path\) reads a file"),
    (lambda: as_dataset({"positive": ["a"]}), DatasetError, "Expected a list of pairs, got a mapping with 'positive'"),
    (lambda: as_dataset(None), DatasetError, "got a NoneType"),
    (lambda: as_dataset(ContrastPairDataset("b", ["x"])), DatasetError, "pair 0 of the dataset is a str"),
    (lambda: as_dataset(iter(())), DatasetError, "dataset of 'custom' is empty"),
])  # fmt: skip
def test_what_is_not_pairs_is_refused_with_the_way_to_them(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_built_in_behaviour_is_loaded_by_its_name():
    expected = load_behavior("formality")
    for pairs in (load_pairs("formality"), pairs_from("formality")):
        assert (pairs.behavior, pairs.description, list(pairs)) == ("formality", expected.description, list(expected))
        assert pairs.sha256 == expected.sha256
    with pytest.raises(OptionError, match="columns are for files; formality is a built-in behaviour"):
        load_pairs("formality", columns={"positive": "chosen"})


def test_pairs_come_from_a_file_a_list_or_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "calm.jsonl"
    path.write_text('{"positive": "a", "negative": "b"}\n')
    for source in (path, str(path), "~/calm.jsonl", load_pairs(path)):
        assert pairs_from(source).behavior == "calm"
        assert list(pairs_from(source)) == [ContrastPair("a", "b")]
    assert pairs_from([{"positive": "a", "negative": "b"}]).positives == ["a"]
    for name in ("clam", tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(DatasetError, match=r"There is no file '.*', and no built-in behaviour .*: assertiveness"):
            pairs_from(name)
