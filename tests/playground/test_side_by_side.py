import threading

import pytest
import torch

from rotalabs_steer.playground.side_by_side import Turns, write_together


def endless_writer():
    """A writer that goes on until it is ended, and the event that says that it was."""
    ended = threading.Event()

    def endless(write):
        try:
            while True:
                write("on and on")
        finally:
            ended.set()

    return endless, ended


def test_both_texts_are_read_as_they_grow():
    turn = [threading.Event(), threading.Event()]

    def writer(number):
        def write_all(write):
            for text in ("a", "ab", "abc"):
                turn[number].wait()
                turn[number].clear()
                write(text)
                turn[1 - number].set()

        return write_all

    turn[0].set()
    seen = list(write_together([writer(0), writer(1)]))
    assert seen == [("a", ""), ("a", "a"), ("ab", "a"), ("ab", "ab"), ("abc", "ab"), ("abc", "abc")]


def test_an_error_is_raised_where_the_texts_are_read_and_ends_the_other():
    endless, ended = endless_writer()

    def failing(write):
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(write_together([endless, failing]))
    assert ended.is_set()


def test_a_reader_who_leaves_ends_the_writers():
    endless, ended = endless_writer()
    texts = write_together([endless])
    assert next(texts) == ("on and on",)
    texts.close()
    assert ended.is_set()


def test_each_draws_what_it_would_draw_alone():
    turns, drawn, order = Turns(2, seed=7), ([], []), []

    def draw(number, count):
        def run(write):
            try:
                turns.begin(number)
                for _ in range(count):
                    drawn[number].append(float(torch.rand(())))
                    order.append(number)
                    turns.give_way(number)
            finally:
                turns.leave(number)

        return run

    list(write_together([draw(0, 2), draw(1, 4)]))
    torch.manual_seed(7)
    alone = [float(torch.rand(())) for _ in range(4)]
    assert drawn == (alone[:2], alone)
    assert order == [0, 1, 0, 1, 1, 1]
