from types import SimpleNamespace

import pytest

from engines.vllm.steered_sets import random_set, save_sets
from engines.vllm.test_settings import engine
from rotalabs_steer.engines.vllm.frontend import SteeringFrontend
from rotalabs_steer.engines.vllm.settings import steering_config
from rotalabs_steer.engines.vllm.steering import steering_of
from rotalabs_steer.errors import FileFormatError, LayerError, OptionError, VectorError


class Params(SimpleNamespace):
    """Sampling parameters, as far as steering knows them."""

    def clone(self):
        return Params(**vars(self))


@pytest.fixture
def frontend(tmp_path):
    save_sets(tmp_path, hidden=8)
    return SteeringFrontend(engine(steering_config(tmp_path)))


def test_a_request_is_resolved_and_the_callers_is_left_alone(frontend):
    params = Params(extra_args={"steering": {"warm": 0.5}, "other": 1})
    found = frontend.resolved_params(params)
    assert [(a.layer, a.behavior, a.strength) for a in steering_of(found).additions] == [(15, "warm", 0.5)]
    assert found.extra_args["other"] == 1
    assert params.extra_args == {"steering": {"warm": 0.5}, "other": 1}


@pytest.mark.parametrize("extra", [None, {}, {"other": 1}])
def test_others_pass_as_they_are(frontend, extra):
    params = Params(extra_args=extra)
    assert frontend.resolved_params(params) is params


def test_strength_zero_is_unsteered(frontend):
    assert frontend.resolved_params(Params(extra_args={"steering": {"warm": 0}})).extra_args is None


def test_what_is_refused(frontend):
    with pytest.raises(OptionError, match="input is streamed cannot be steered"):
        frontend.resolved_params(Params(extra_args={"steering": {"warm": 1}}), resumable=True)
    with pytest.raises(OptionError, match="kept for the engine; ask by 'steering'"):
        frontend.resolved_params(Params(extra_args={"rotalabs_steer": {}}))


def test_an_engine_without_vectors_refuses_steering():
    frontend = SteeringFrontend(engine())
    with pytest.raises(OptionError, match=r"started without steering vectors. Start it with: rotalabs-steer serve"):
        frontend.resolve({"warm": 1.0})
    with pytest.raises(OptionError, match="so there are none to read again"):
        frontend.read_again()


def test_a_server_has_the_engine_made_last(frontend, monkeypatch):
    assert SteeringFrontend.of_server() is frontend
    monkeypatch.setattr(SteeringFrontend, "_latest", None)
    with pytest.raises(OptionError, match="No engine runs in this process"):
        SteeringFrontend.of_server()


def test_a_folder_that_cannot_be_used_changes_nothing(frontend, tmp_path):
    before = frontend.catalogue
    random_set("new", (5,), 0, hidden=8).save(tmp_path / "new")
    with pytest.raises(LayerError, match="'new' acts at layer 5, but the engine was started with layers"):
        frontend.read_again()
    random_set("new", (15,), 0, hidden=16).save(tmp_path / "new")
    with pytest.raises(VectorError, match="has 16 numbers"):
        frontend.read_again()
    assert frontend.catalogue is before
    random_set("new", (15,), 0, hidden=8).save(tmp_path / "new")
    fresh = frontend.read_again()
    assert ("new" in fresh.sets, fresh.key != before.key) == (True, True)
    with pytest.raises(FileFormatError, match="changed while it was read again"):
        frontend.take_over(fresh, [True, False])
    assert frontend.catalogue is before
    frontend.take_over(fresh, [True, True])
    assert frontend.catalogue is fresh
