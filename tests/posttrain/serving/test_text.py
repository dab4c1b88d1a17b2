"""Tokens to text: streaming in any pieces gives the text that decoding at once would have given."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.serving.text import TextStream
from pretrain.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["what is 1 + 2 ? größer 東京 🙂 ok"] * 20, vocab_size=300)


def stream(ids, stops=()):
    text = TextStream(TOKENIZER, stops)
    pieces = []
    for one in ids:
        pieces.append(text.push(one))
        if text.stopped:
            return pieces, True
    pieces.append(text.end())
    return pieces, text.stopped


def decoded(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_pieces_join_to_the_text_decoded_at_once_even_of_invalid_bytes(ids):
    pieces, _ = stream(ids)
    assert "".join(pieces) == decoded(ids)


@given(st.text(max_size=30))
def test_no_piece_of_a_valid_text_holds_half_a_character(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces, _ = stream(ids)
    assert "".join(pieces) == decoded(ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_character_of_four_bytes_comes_when_it_is_complete():
    ids = [TOKENIZER.convert_tokens_to_ids(t) for t in TOKENIZER.tokenize("é")]
    assert len(ids) == 2  # not in the training text, so its bytes are apart
    assert stream(ids)[0] == ["", "é", ""]


def first_complete(text, stops):
    """The slow definition: character by character, until a stop string is complete."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    st.text("ab1 ", max_size=20),
    st.lists(st.text("ab1 ", min_size=1, max_size=4), max_size=3),
    st.randoms(),
)
def test_stop_strings_cut_where_the_first_one_is_complete(text, stops, rng: random.Random):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces, stopped = stream(ids, stops)
    assert ("".join(pieces), stopped) == first_complete(decoded(ids), stops)


def test_what_may_become_a_stop_string_waits():
    ids = TOKENIZER.encode("1a1b1", add_special_tokens=False)
    assert len(ids) == 5
    assert stream(ids, ["a1c"])[0] == ["1", "", "", "a1b", "1", ""]
    assert stream(ids, ["a1b"])[0] == ["1", "", "", ""]


@pytest.mark.parametrize("special", ["<|im_end|>", "<|endoftext|>"])
def test_special_tokens_are_no_text(special):
    ids = [
        *TOKENIZER.encode("1", add_special_tokens=False),
        TOKENIZER.convert_tokens_to_ids(special),
    ]
    assert "".join(stream(ids)[0]) == "1"
