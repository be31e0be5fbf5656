from types import SimpleNamespace

import pytest

from engines.vllm.steered_sets import random_set, save_sets
from engines.vllm.test_settings import engine
from rotalabs_steer.engines.vllm.frontend import SteeringFrontend
from rotalabs_steer.engines.vllm.settings import SteeringSettings, steering_config
from rotalabs_steer.engines.vllm.steering import running_vectors, steering_of
from rotalabs_steer.engines.vllm.worker import check_key
from rotalabs_steer.errors import FileFormatError, LayerError, OptionError, VectorError
from rotalabs_steer.steering.acting_layers import NotSteeringWarning


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
    with pytest.raises(OptionError, match="which the engine sets itself; use 'steering'"):
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


def test_the_workers_are_told_which_vectors_were_read(tmp_path):
    save_sets(tmp_path, hidden=8)
    given = steering_config(tmp_path)
    config = engine(given)
    frontend = SteeringFrontend(config)
    settings = SteeringSettings.of(config)
    assert settings.key == frontend.catalogue.key
    assert given == steering_config(tmp_path)
    check_key(settings.catalogue(config), settings.key, settings.vectors)
    random_set("calm", (20,), 99, hidden=8).save(tmp_path / "calm")
    with pytest.raises(
        FileFormatError, match=r"a worker read from .* are not those that the API server read: .*changed"
    ):
        check_key(settings.catalogue(config), settings.key, settings.vectors)


def test_the_workers_are_told_what_accepted_requests_may_use(frontend, tmp_path):
    random_set("calm", (20,), 99, hidden=8).save(tmp_path / "calm")
    key, used = frontend.reload_arguments(frontend.read_again())
    assert key != frontend.catalogue.key
    assert set(used) == frontend.catalogue.digests


def test_the_vectors_of_requests_in_the_engine(frontend):
    params = [
        Params(extra_args={"steering": value}) for value in ({"warm": 1.0}, {"warm": 2.0, "calm": 1.0}, {"calm": 0})
    ]
    requests = [SimpleNamespace(sampling_params=frontend.resolved_params(each)) for each in params]
    requests.append(SimpleNamespace(sampling_params=None))
    sets = frontend.catalogue.sets
    (warm,), (calm,) = sets["warm"].acting, sets["calm"].acting
    assert set(running_vectors(requests)) == {
        frontend.catalogue._digests[v.behavior, v.layer_index] for v in (warm, calm)
    }


@pytest.mark.parametrize("several", [{"_api_process_count": 2}, {"data_parallel_size": 2}])
def test_vectors_are_not_read_again_where_others_would_not_learn_of_them(tmp_path, several):
    save_sets(tmp_path, hidden=8)
    frontend = SteeringFrontend(engine(steering_config(tmp_path), parallel_config=SimpleNamespace(**several)))
    with pytest.raises(OptionError, match="Only one of several API servers or data-parallel engines would learn"):
        frontend.read_again()


def test_a_set_that_does_not_steer_is_said_to_be_one_at_the_start(tmp_path):
    random_set("humor", (5,), 0, hidden=8, steers=False).save(tmp_path / "humor")
    with pytest.warns(NotSteeringWarning, match="the vectors of 'humor' do not steer random"):
        frontend = SteeringFrontend(engine(steering_config(tmp_path)))
    assert frontend.catalogue.describe()[0]["steers"] is False


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
