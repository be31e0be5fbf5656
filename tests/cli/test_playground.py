import socket
import subprocess
import sys

import pytest

from rotalabs_steer.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rotalabs-steer", "playground", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1
        return capsys.readouterr().err

    return run


def test_what_cannot_be_shown_is_an_error_before_a_page_is(run, small_model, tmp_path):
    assert "A server has its own model and vectors" in run("sample", "--vectors", "tuned", "--server", "http://x")
    assert "A model and its vectors go together: give both" in run("sample")
    assert "There are no steering vectors at ./none" in run(small_model, "--vectors", "./none").replace("\n", " ")
    assert "No server answers at http://127.0.0.1:9/v1" in run("--server", "http://127.0.0.1:9")
    assert "'127.0.0.1:9' is not the address of a server" in run("--server", "127.0.0.1:9")


def test_other_machines_do_not_choose_what_is_loaded(run):
    assert "it does not let them choose what is loaded: name a model and --vectors" in run("--host", "0.0.0.0")


def test_a_port_that_is_taken_is_named():
    verb = "from rotalabs_steer.cli import main; main()"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-c", verb, "playground", "--port", port], check=False, capture_output=True, text=True
        )
    assert ended.returncode == 1
    assert ended.stderr == f"error: Port {port} is taken. Choose another with --port.\n"


def test_without_gradio_it_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert 'Install it with: pip install "rotalabs-steer[playground]"' in run()
