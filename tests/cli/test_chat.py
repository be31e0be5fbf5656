"""The verb `chat`, with lines from standard input and on a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from rotalabs_steer.cli.app import app
from rotalabs_steer.cli.conversation import HELP

pytestmark = pytest.mark.real_model
SHORT = ["-n", 6]


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def vectors(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "humor"
    result = run("extract", small_model, "humor", "-o", folder, "-l", 3, "-q")
    assert (result.exit_code, result.output) == (0, "")
    return folder


@pytest.fixture
def chat(small_model, vectors):
    def chat(*lines, options=()):
        typed = "\n".join(map(str, lines))
        return run("chat", small_model, "-s", f"{vectors}=5000", *SHORT, *options, input=typed)

    return chat


def test_it_greets_with_what_acts(chat, small_model):
    result = chat("/quit")
    assert result.exit_code == 0, result.output
    first, warned, second = result.stderr.splitlines()
    assert first.startswith(f"{small_model} on ")
    assert first.endswith("; humor: layer 3, strength 5000, scope all")
    assert warned.startswith("warning: humor=5000 costs ")
    assert "/help" in second
    assert "Ctrl-C" in second


def test_strengths_are_changed_on_the_way(chat):
    result = chat("/strength humor 0.5", "/strength calm 1", "/strength humor much", "/strength", "/what", "/help")
    assert result.exit_code == 0, result.output
    assert "humor 0.5" in result.stdout
    assert "No vectors for behaviour 'calm'; there are ['humor']" in result.stdout
    assert "could not convert string to float: 'much'" in result.stdout
    assert "Use /strength BEHAVIOUR NUMBER." in result.stdout
    assert "There is no command /what. /help lists the commands." in result.stdout
    assert HELP in result.stdout


def test_compare_answers_the_same_turn_unsteered(chat, small_model, tmp_path):
    result = chat("hello", "/compare", "/compare", f"/save {tmp_path / 'talk.json'}", "/undo", "/compare", "/undo")
    assert result.exit_code == 0, result.output
    talk = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert [message["role"] for message in talk["messages"]] == ["user", "assistant"], "a comparison is not kept"
    plain = run("generate", small_model, "hello", *SHORT).stdout.strip()
    assert result.stdout.count(f"unsteered: {plain}") == 2
    assert plain != talk["messages"][1]["content"]
    assert "Taken back: hello" in result.stdout
    assert "There is no answer to compare with yet." in result.stdout
    assert "There is nothing to take back." in result.stdout


def test_a_drawn_answer_is_that_of_its_seed_and_turn(chat, small_model, vectors, tmp_path):
    files = [tmp_path / f"{n}.json" for n in range(3)]
    for file, seed in zip(files, (7, 7, 8), strict=True):
        chat("hello", "again", f"/save {file}", options=["-t", 2, "--seed", seed])
    one, same, other = (json.loads(file.read_text("utf-8"))["messages"] for file in files)
    assert one == same
    assert one != other


def test_the_system_message_is_changed_kept_and_removed(chat, tmp_path):
    saved = [tmp_path / f"{n}.json" for n in range(3)]
    chat(
        "hello", "/system Be brief.", f"/save {saved[0]}", "/reset", f"/save {saved[1]}", "/system", f"/save {saved[2]}"
    )
    roles = [[m["role"] for m in json.loads(path.read_text("utf-8"))["messages"]] for path in saved]
    assert roles == [["system", "user", "assistant"], ["system"], []]


def test_saving_keeps_what_there_is_and_the_conversation_goes_on(chat, tmp_path):
    (tmp_path / "mine.json").write_text("mine", "utf-8")
    result = chat("hello", f"/save {tmp_path / 'mine.json'}", "/save", f"/save {tmp_path / 'new.json'}")
    assert result.exit_code == 0, result.output
    assert "mine.json exists. Name a new file." in " ".join(result.stdout.split())
    assert (tmp_path / "mine.json").read_text("utf-8") == "mine"
    talk = json.loads((tmp_path / "new.json").read_text("utf-8"))
    assert talk["strengths"] == {"humor": 5000.0}
    assert talk["vectors"] == [{"behavior": "humor", "layers": [3], "strength": 5000.0}]
    assert len(talk["messages"]) == 2


def test_a_chat_without_vectors_says_that_nothing_steers(small_model):
    result = run("chat", small_model, *SHORT, input="/strengths\nhello\n/compare\n")
    assert result.stdout.count("Nothing steers. Start the chat with --steer.") == 2


class Terminal:
    """A verb in a process of its own, on a terminal of 80 columns."""

    def __init__(self, *arguments, **environment):
        master, self._slave = pty.openpty()
        self._master, self.shown = master, ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rotalabs_steer", *map(str, arguments)],
            stdin=self._slave, stdout=self._slave, stderr=self._slave, start_new_session=True,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm", **environment},
        )  # fmt: skip

    def wait_for(self, text, seconds=120):
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} was not shown, but {self.shown!r}"
            self.shown += os.read(self._master, 4096).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before

    def wait_for_more(self, seconds=120):
        if not self.shown:
            assert select.select([self._master], [], [], seconds)[0]

    def type(self, text):
        os.write(self._master, f"{text}\n".encode())

    def press_ctrl_c(self):
        self.process.send_signal(signal.SIGINT)

    def press_ctrl_c_until_it_ends(self):
        """The exit code. One that comes while readline prepares its prompt is seen with the next."""
        for _ in range(20):
            self.press_ctrl_c()
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(10)
        raise AssertionError("Ctrl-C does not end it")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def terminal():
    opened = []

    def terminal(*arguments, **environment):
        opened.append(Terminal(*arguments, **environment))
        return opened[-1]

    yield terminal
    for one in opened:
        one.close()


def test_ctrl_c_stops_the_answer_only_and_at_the_prompt_it_leaves(terminal, small_model, tmp_path):
    endless = tmp_path / "endless"
    shutil.copytree(small_model, endless)
    (endless / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "min_new_tokens": 6000}), "utf-8")
    chat = terminal("chat", endless, "-n", 7000, "-t", 50)
    chat.wait_for("> ")
    chat.type("hello")
    chat.wait_for("hello\r\n")
    chat.wait_for_more()  # the answer of thousands of tokens is on its way
    chat.press_ctrl_c()
    chat.wait_for(" (stopped)")
    chat.wait_for("> ")
    chat.type(f"/save {tmp_path / 'talk.json'}")
    chat.wait_for("Saved in")
    talk = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert [message["role"] for message in talk["messages"]] == ["user", "assistant"]
    chat.wait_for("> ")
    assert chat.press_ctrl_c_until_it_ends() == 0


def test_no_color_leaves_out_every_style(terminal, small_model, vectors):
    shown = terminal("generate", small_model, "Hi", "-s", vectors, "-c", "-q", *SHORT, NO_COLOR="1")
    assert "\x1b[" not in shown.wait_for("steered: ")


def test_ctrl_c_in_tune_says_how_to_go_on(terminal, small_model, tmp_path):
    tune = terminal("tune", small_model, "humor", "-o", tmp_path / "tuned")
    tune.wait_for("scoring the layers")
    tune.press_ctrl_c()
    tune.wait_for("Stopped. Run the same command again to go on")
    assert tune.process.wait(60) == 130
