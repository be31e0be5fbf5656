from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from rotalabs_steer.cached_folders import make_once, user_cache


def test_the_cache_is_where_the_user_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "rotalabs-steer"


def test_several_that_make_a_folder_at_once_leave_one_whole_folder(tmp_path):
    together = Barrier(4)

    def make(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "done").write_text("whole")
        together.wait()
        return folder / "inner"

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(make_once, tmp_path / "model", "done", make) for _ in range(4)]:
            done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "done").read_text() == "whole"


def test_a_folder_that_is_not_whole_is_replaced_and_one_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "part").write_text("half")

    def make(folder):
        (folder / "done").write_text("whole")
        return folder

    make_once(tmp_path / "model", "done", make)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["done"]

    def fail(folder):
        raise ValueError("broken archive")

    with pytest.raises(ValueError, match="broken archive"):
        make_once(tmp_path / "other", "done", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
