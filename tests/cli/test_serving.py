import sys

import pytest

from rotalabs_steer.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rotalabs-steer", "serve", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr().err

    return run


def test_a_server_open_to_all_is_refused(run):
    code, error = run("a/model", "--vectors", "vectors", "--host", "0.0.0.0")
    assert code == 1
    assert "error: On 0.0.0.0 the server could be reached from other machines by anyone. Pass --api-key" in error


def test_options_of_vllm_pass_but_for_those_that_are_ours(run):
    code, error = run("a/model", "--vectors", "vectors", "--dtype", "float32", "--additional-config", "{}")
    assert code == 1
    assert "--additional-config is set by rotalabs-steer serve" in error


def test_without_vllm_it_says_how_to_install_it(run, tmp_path):
    code, error = run("a/model", "--vectors", str(tmp_path), "--dtype", "float32")
    assert code == 1
    assert 'Install it with: pip install "rotalabs-steer[vllm]"' in error
