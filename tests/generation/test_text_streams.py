import contextvars
import threading

import pytest
import torch

from rotalabs_steer.generation.text_streams import stream_text

TEXT = "Käse, 日本語 and 🧀!"
END = 256


def stream(tokens, ends=(), decode=lambda ids: bytes(ids).decode("utf-8", "replace")):
    """The pieces of tokens that are bytes, which are written as `generate` writes them."""

    def write(streamer, stopped):
        streamer.put(torch.tensor([[1, 2, 3]]))
        for token in tokens:
            streamer.put(torch.tensor([token]))
        streamer.end()

    return stream_text(write, decode, ends, contextvars.copy_context())


def test_every_piece_is_made_of_whole_characters():
    pieces = list(stream(TEXT.encode()))
    assert pieces == list(TEXT)


def test_a_part_of_a_character_at_the_end_is_not_lost():
    assert list(stream("aé".encode()[:-1])) == ["a", "\ufffd"]


def test_a_blank_that_a_decoder_drops_at_the_beginning_of_a_text_is_kept_between_words():
    words = [" one", " two", " three"]
    pieces = list(stream([0, 1, 2], decode=lambda ids: "".join(words[token] for token in ids).removeprefix(" ")))
    assert pieces == ["one", " two", " three"]


def test_tokens_that_end_the_text_are_not_part_of_it():
    assert list(stream([65, END], {END})) == ["A"]
    assert list(stream([END], {END})) == []


def test_pieces_come_before_the_model_has_finished():
    go_on = threading.Event()

    def write(streamer, stopped):
        streamer.put(torch.tensor([[0]]))
        streamer.put(torch.tensor([65]))
        assert go_on.wait(30)
        streamer.put(torch.tensor([66]))

    pieces = stream_text(write, lambda ids: bytes(ids).decode(), (), contextvars.copy_context())
    assert next(pieces) == "A"
    go_on.set()
    assert list(pieces) == ["B"]


def test_an_error_comes_after_the_pieces_that_were_written():
    def write(streamer, stopped):
        streamer.put(torch.tensor([[0]]))
        streamer.put(torch.tensor([65]))
        raise RuntimeError("out of paper")

    pieces = stream_text(write, lambda ids: bytes(ids).decode(), (), contextvars.copy_context())
    assert next(pieces) == "A"
    with pytest.raises(RuntimeError, match="out of paper"):
        next(pieces)
