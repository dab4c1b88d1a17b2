"""The corpus: exact texts, determinism, and no held-out problem in anything that is trained on."""

from __future__ import annotations

import hashlib
from itertools import islice

import pytest

from pretrain.corpus import (
    CHAIN_SUM,
    TWO_TERMS,
    CorpusSettings,
    Problem,
    Source,
    answer_text,
    chat_rows,
    chat_text,
    documents,
    is_held_out,
    problems,
    running_sums,
)

QUESTION = "State the final answer to the following arithmetic problem: "


def test_running_sums_writes_one_two_term_sum_per_step() -> None:
    assert running_sums("4 - 1 - 7") == ("4 - 1 = 3", "3 - 7 = -4")
    assert running_sums("0 - 9 + 12") == ("0 - 9 = -9", "-9 + 12 = 3")
    assert running_sums("5") == ()


def test_the_two_styles_of_one_answer() -> None:
    problem = Problem("4 - 1 - 7 =", "-4", running_sums("4 - 1 - 7"))
    assert answer_text(problem, "direct") == "-4"
    assert answer_text(problem, "thinking") == "<think>4 - 1 = 3\n3 - 7 = -4</think>-4"


def test_a_problem_without_known_steps_is_answered_directly() -> None:
    assert answer_text(Problem("Spell sun backward", "nus"), "thinking") == "nus"


def test_the_last_step_of_every_problem_is_its_answer() -> None:
    for problem in islice(problems(CHAIN_SUM, 0, 10), 500):
        assert problem.steps[-1].split(" = ")[1] == problem.answer


def test_held_out_is_the_documented_rule_and_ignores_outer_blanks() -> None:
    text = QUESTION + "4 - 1 - 7 ="
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    expected = int.from_bytes(digest, "big") % 100
    assert is_held_out(text, expected + 1)
    assert not is_held_out(text, expected)
    assert is_held_out(f"  {text}\n", expected + 1)


def test_held_out_takes_about_its_share() -> None:
    questions = [f"{QUESTION}{a} + {b} =" for a in range(100) for b in range(100)]
    share = sum(is_held_out(question) for question in questions) / len(questions)
    assert 0.09 < share < 0.11


def test_nothing_rendered_contains_a_held_out_question() -> None:
    settings = CorpusSettings((CHAIN_SUM, TWO_TERMS), held_out_percent=40)
    for row in chat_rows(settings, 500, seed=1):
        assert not is_held_out(row["messages"][0]["content"], 40)
    plain = CorpusSettings((CHAIN_SUM, TWO_TERMS), chat_share=0.0, held_out_percent=40)
    for text in documents(plain, 500, seed=1):
        assert not is_held_out(text.split("\n")[0], 40)


def test_the_seed_decides_every_document_and_more_of_them_only_add() -> None:
    settings = CorpusSettings()
    first = list(documents(settings, 300, seed=3))
    assert first == list(documents(settings, 400, seed=3))[:300]
    assert first != list(documents(settings, 300, seed=4))


def test_shares_of_thinking_and_of_conversations() -> None:
    texts = list(documents(CorpusSettings(thinking_share=0.25, chat_share=0.5), 2000))
    assert 0.21 < sum("<think>" in text for text in texts) / 2000 < 0.29
    assert 0.46 < sum(text.startswith("<|im_start|>") for text in texts) / 2000 < 0.54


def test_chat_text_is_exact() -> None:
    row = {
        "messages": [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": "2"}]
    }
    assert chat_text(row) == (
        "<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    )


def test_any_reasoning_gym_task_is_a_source() -> None:
    words = CorpusSettings((Source("spell_backward"),), chat_share=0.0)
    question, answer = next(documents(words, 1)).split("\n")
    assert question.endswith(f": {answer[::-1]}")


@pytest.mark.parametrize(
    "wrong",
    [{"sources": ()}, {"thinking_share": 1.5}, {"chat_share": -0.1}, {"held_out_percent": 100}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        CorpusSettings(**wrong)  # type: ignore[arg-type]


def test_a_source_whose_every_problem_is_held_out_ends_instead_of_hanging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pretrain.corpus.is_held_out", lambda question, percent: True)
    monkeypatch.setattr("pretrain.corpus._LONGEST_DROUGHT", 50)
    with pytest.raises(ValueError, match="every problem is held out"):
        next(problems(CHAIN_SUM, 0, 10))
