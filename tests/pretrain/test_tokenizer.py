"""The tokenizer: nothing is lost, digits stay apart, the chat template is exact to the token."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.corpus import CorpusSettings, chat_rows, chat_text, documents
from pretrain.tokenizer import train_tokenizer

SUM = "12 + 35 = 47"
ROW = [{"role": "user", "content": SUM}, {"role": "assistant", "content": "<think>-4</think>-4"}]


@cache
def tokenizer() -> Any:
    return train_tokenizer(documents(CorpusSettings(), 500))


@settings(deadline=None)  # the first example trains the tokenizer
@given(st.text(max_size=60).filter(lambda text: "<|" not in text))
def test_every_text_survives_a_round_trip(text: str) -> None:
    ids = tokenizer()(text)["input_ids"]
    assert tokenizer().decode(ids) == text


def test_one_token_per_digit_and_blanks_go_with_the_operator() -> None:
    pieces = [tokenizer().decode([i]) for i in tokenizer()(SUM)["input_ids"]]
    assert pieces == ["1", "2", " + ", "3", "5", " = ", "4", "7"]


def test_the_words_of_the_question_are_whole_tokens() -> None:
    text = "State the final answer to the following arithmetic problem: 4 - 1 ="
    pieces = [tokenizer().decode([i]) for i in tokenizer()(text)["input_ids"]]
    words = ["State", " the", " final", " answer", " to", " the", " following", " arithmetic"]
    assert pieces == [*words, " problem", ": ", "4", " - ", "1", " ="]


def test_thinking_is_visible_in_decoded_text_and_turn_ends_are_not(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer().save_pretrained(tmp_path)
    for candidate in (tokenizer(), AutoTokenizer.from_pretrained(tmp_path)):
        ids = candidate("<think>1 + 1 = 2</think>2<|im_end|>")["input_ids"]
        assert len(ids) == 9
        assert candidate.decode(ids, skip_special_tokens=True) == "<think>1 + 1 = 2</think>2"


def test_pad_is_not_an_end_token() -> None:
    one = tokenizer()
    ends = {one.eos_token_id, one.convert_tokens_to_ids("<|im_end|>")}
    assert one.pad_token_id not in ends
    assert len(ends) == 2


def test_template_and_assistant_mask_are_exact() -> None:
    rendered = tokenizer().apply_chat_template(
        ROW, return_dict=True, return_assistant_tokens_mask=True
    )
    pieces = [tokenizer().decode([i]) for i in rendered["input_ids"]]
    user = ["<|im_start|>", "user", "\n", "1", "2", " + ", "3", "5", " = ", "4", "7", "<|im_end|>"]
    header = ["\n", "<|im_start|>", "assistant", "\n"]
    written = ["<think>", "-", "4", "</think>", "-", "4", "<|im_end|>"]
    assert pieces == [*user, *header, *written, "\n"]
    assert rendered["assistant_masks"] == [0] * 16 + [1] * 7 + [0]


def test_a_generation_prompt_is_what_training_saw_before_the_answer() -> None:
    prompt = tokenizer().apply_chat_template(ROW[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer().apply_chat_template(ROW, tokenize=False)
    assert whole == prompt + "<think>-4</think>-4<|im_end|>\n"


def test_the_corpus_writes_conversations_as_the_template_does() -> None:
    for row in chat_rows(CorpusSettings(), 20):
        rendered = tokenizer().apply_chat_template(row["messages"], tokenize=False)
        assert rendered == chat_text(row)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(Exception, match="unknown role: bard"):
        tokenizer().apply_chat_template([{"role": "bard", "content": ""}], tokenize=False)


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 262"):
        train_tokenizer(["a"], vocab_size=200)
