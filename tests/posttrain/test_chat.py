import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.chat import Chat
from posttrain.errors import UsageError
from pretrain.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is 2 + 2 ?", "try again, it is 4"] * 50, vocab_size=400)


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer)


QUESTION = [{"role": "user", "content": "What is 2 + 2 ?"}]
AGAIN = [{"role": "user", "content": "try again"}]


def test_a_prompt_ends_where_the_assistant_begins(chat):
    text = chat.tokenizer.decode(chat.prompt_ids(QUESTION).tolist(), skip_special_tokens=False)
    assert text == "<|im_start|>user\nWhat is 2 + 2 ?<|im_end|>\n<|im_start|>assistant\n"


def test_the_next_prompt_is_what_the_template_renders(chat):
    """For text that decodes and encodes alike, extending equals rendering the whole."""
    prompt = chat.prompt_ids(QUESTION)
    ids = chat.tokenizer.encode("4", add_special_tokens=False)
    completion = np.array([*ids, chat.stop_token_ids[0]])
    whole = chat.prompt_ids([*QUESTION, {"role": "assistant", "content": "4"}, *AGAIN])
    assert chat.extend(prompt, completion, AGAIN).tolist() == whole.tolist()


def test_an_answer_that_was_cut_off_is_closed(chat):
    prompt = chat.prompt_ids(QUESTION)
    cut = np.array(chat.tokenizer.encode("4", add_special_tokens=False))
    whole = chat.prompt_ids([*QUESTION, {"role": "assistant", "content": "4"}, *AGAIN])
    assert chat.extend(prompt, cut, AGAIN).tolist() == whole.tolist()


@given(data=st.data())
def test_sampled_ids_are_kept_whatever_they_are(chat, data):
    """Ids that would be encoded otherwise (three bytes of a word that is one token) stay."""
    size = len(chat.tokenizer)
    ids = data.draw(st.lists(st.integers(5, size - 1), max_size=12))
    prompt, completion = chat.prompt_ids(QUESTION), np.array(ids, dtype=np.int64)
    extended = chat.extend(prompt, completion, AGAIN)
    kept = len(prompt) + len(completion)
    assert extended[:kept].tolist() == [*prompt.tolist(), *ids]
    tail = chat.tokenizer.decode(extended[kept:].tolist(), skip_special_tokens=False)
    assert tail.endswith("<|im_start|>user\ntry again<|im_end|>\n<|im_start|>assistant\n")


def test_a_tokenizer_without_a_template_or_an_end_is_refused(tokenizer):
    class Bare:
        chat_template = None

    class Endless:
        chat_template = "any"
        eos_token_id = None

    with pytest.raises(UsageError, match="has no chat template"):
        Chat(Bare(), "the tokenizer of m")
    with pytest.raises(UsageError, match="has no end-of-sequence token"):
        Chat(Endless())
