import logging

import pytest

from rotalabs_steer import SteeringVectorSet
from rotalabs_steer.errors import ModelNameError, OptionError
from rotalabs_steer.playground.opening import Choice, Opener, explain
from tiny import make_vector


def test_a_model_is_loaded_once_and_makes_room_for_the_next(llama, tmp_path):
    SteeringVectorSet("calm", [make_vector(llama, behavior="calm")]).save(tmp_path / "calm")
    loaded = []

    def load(name):
        loaded.append(name)
        if name == "none":
            raise ModelNameError("There is none.")
        return llama, "tokenizer"

    opener = Opener(load)
    for name in ("a", " a", "b", "a"):
        assert list(opener.open(Choice(model=name, vectors=str(tmp_path))).sets) == ["calm"]
    with pytest.raises(ModelNameError):
        opener.open(Choice(model="none", vectors=str(tmp_path)))
    with pytest.raises(FileNotFoundError):  # known before the model is loaded
        opener.open(Choice(model="c", vectors=str(tmp_path / "nowhere")))
    opener.open(Choice(model="a", vectors=str(tmp_path)))
    assert loaded == ["a", "b", "a", "none", "a"]


def test_errors_are_one_sentence(caplog):
    assert explain(OptionError("Do this.")) == "Do this."
    assert explain(OSError("There is no model of that name.\nMany more lines.")) == "There is no model of that name."
    with caplog.at_level(logging.ERROR):
        assert (
            explain(KeyError("x"))
            == "Something failed that should not: KeyError: 'x'. Its traceback is in the terminal."
        )
    assert caplog.records[0].exc_info
