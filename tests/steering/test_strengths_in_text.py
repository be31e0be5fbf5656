import pytest
import torch

from rotalabs_steer import SteeringVector
from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.strengths_in_text import (
    NamedVectors,
    parse_layers,
    parse_numbers,
    parse_several,
    parse_vectors,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, in which the paths of a test are looked for."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("text", "named"), [
    ("tuned/calm", NamedVectors("tuned/calm")),
    (" tuned/calm = 0.8 ", NamedVectors("tuned/calm", None, 0.8)),
    ("tuned/calm=-1e-1", NamedVectors("tuned/calm", None, -0.1)),
    ("me/calm@v1=2", NamedVectors("me/calm@v1", None, 2.0)),
    ("me/calm@v1:14", NamedVectors("me/calm@v1", (14,))),
    ("calm:14,8-10=0.5", NamedVectors("calm", (14, 8, 9, 10), 0.5)),
    ("C:\\sets\\calm=1", NamedVectors("C:\\sets\\calm", None, 1.0)),
])  # fmt: skip
def test_a_text_names_a_place_layers_and_a_strength(text, named):
    assert parse_vectors(text) == named
    assert parse_several(text) == [named]


def test_several_are_separated_by_commas_and_so_are_layers():
    assert parse_several("tuned/calm=0.8, me/humor@v2:14,16=-0.5,plain") == [
        NamedVectors("tuned/calm", None, 0.8), NamedVectors("me/humor@v2", (14, 16), -0.5), NamedVectors("plain"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["runs=3", "a,b", "a,b=2,c", "calm:14", "calm:14=0.8", "x,15=1"])
def test_files_that_exist_are_meant_whatever_their_name_looks_like(folder, name):
    (folder / name).mkdir()
    assert parse_several(name) == [NamedVectors(name)]
    assert parse_several(f"other=2,{name}=0.5,more") == [
        NamedVectors("other", None, 2.0), NamedVectors(name, None, 0.5), NamedVectors("more"),
    ]  # fmt: skip


def test_a_single_vector_is_a_place_by_its_two_files(folder):
    SteeringVector("calm", 1, torch.ones(4), "tiny").save(folder / "calm=1")
    assert parse_vectors("calm=1") == NamedVectors("calm=1")


def test_two_paths_that_can_be_meant_are_an_error(folder):
    (folder / "calm").mkdir()
    assert parse_vectors("calm=0.8") == NamedVectors("calm", None, 0.8)
    (folder / "calm=0.8").mkdir()
    with pytest.raises(OptionError, match=r"'calm=0.8' can mean calm=0.8 or calm, and .* Write 'calm=0.8=1' for"):
        parse_vectors("calm=0.8")
    assert parse_vectors("calm=0.8=1") == NamedVectors("calm=0.8", None, 1.0)


@pytest.mark.parametrize("text", [
    "", " ", "=0.5", "calm=", "calm=much", "calm=nan", "calm=-inf", "calm=0,8", "calm=0.5,,humor", "calm,", "a=1e999",
])  # fmt: skip
def test_what_does_not_name_vectors_and_a_strength_is_an_error(text):
    with pytest.raises(OptionError, match=r"is not of the form VECTORS=STRENGTH"):
        parse_several(text)


def test_vectors_are_named_once():
    with pytest.raises(OptionError, match="names calm twice"):
        parse_several("calm=0.5,humor,calm=1")


@pytest.mark.parametrize(("text", "layers"), [("3", (3,)), ("3, 10-12,3", (3, 10, 11, 12)), ("0-0", (0,))])
def test_layers_are_numbers_and_ranges(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "-", "3-", "12-10", "1,,2", "99999", "0-999999999", "a"])
def test_other_texts_do_not_name_layers(text):
    with pytest.raises(OptionError, match="is neither a layer nor a range such as 10-12"):
        parse_layers(text)


def test_numbers_by_name_in_both_ways_of_writing_them():
    expected = {"formality": 1.0, "tone: calm": -0.5}
    assert parse_numbers("formality=1,tone: calm=-0.5") == parse_numbers("formality:1; tone: calm:-0.5") == expected


@pytest.mark.parametrize(("text", "message"), [
    ("a", "'a' in 'a' is not of the form NAME=NUMBER"), ("a=x", "not of the form"), ("a=1,", "'' in 'a=1,' is not"),
    ("=1", "not of the form"), ("a=nan", "not of the form"), ("a=1,a=2", "names 'a' twice"),
])  # fmt: skip
def test_other_texts_do_not_name_numbers(text, message):
    with pytest.raises(OptionError, match=message):
        parse_numbers(text)
