"""Trained tokenizers: no text is lost, special tokens are whole, languages in balance."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.cli import main
from pretrain.errors import UsageError
from pretrain.tokenizer_sample import SampleSettings, sample
from pretrain.tokenizer_training import GROUPS, TokenizerSettings, pieces, train
from tests.pretrain.token_corpus import write_documents

TEXTS = [
    "Der Hund läuft über die Straße, und die Katze schläft.",
    "The dog runs over the street, and the cat sleeps.",
    "def add(a, b):\n    return a + b  # 12345",
    "собака бежит через улицу, 犬は走る",
] * 20
_RNG = random.Random(0)
_WORDS = [
    "".join(_RNG.choices(["ka", "lo", "mi", "stra", "ten", "u", "be"], k=4)) for _ in range(300)
]
TEXTS += [" ".join(_RNG.choices(_WORDS, k=20)) for _ in range(200)]
KINDS = ("bpe", "unigram")


@cache
def trained(kind: str) -> Any:
    return train(TEXTS, TokenizerSettings(kind=kind, vocab_size=500, reserved=2))


def survives(tokenizer: Any, text: str) -> bool:
    """Text with special tokens in it is read as text, as it is for shards."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    return bool(tokenizer.decode(ids) == text)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=50))
def test_any_text_survives(kind: str, text: str) -> None:
    assert survives(trained(kind), text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(parts=st.lists(st.sampled_from(
    ["<0x41>", "<unk>", "<|endoftext|>", "<image>", "\u2581", " ", "\n", "\0", "a", "犬", "<0xF0>"]
)))  # fmt: skip
def test_text_that_spells_tokens_survives(kind: str, parts: list[str]) -> None:
    assert survives(trained(kind), "".join(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_code_points_of_every_plane_survive(kind: str) -> None:
    """Every fifth with BPE, every 17th with Unigram, a few hundred at a time."""
    points = [*range(0xD800), *range(0xE000, 0x110000)][:: 5 if kind == "bpe" else 17]
    for start in range(0, len(points), 500):
        text = "".join(map(chr, points[start : start + 500]))
        assert survives(trained(kind), text), f"U+{points[start]:04X} and those after it"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_whole_and_the_vocabulary_is_as_large_as_asked(
    kind: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    trained(kind).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 500
    added = [token for group in GROUPS.values() for token in group]
    for token in (*added, "<|reserved_1|>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    ids = tokenizer("<|im_start|><think>x</think><tool_call><image><|im_end|>")["input_ids"]
    # what parsers read stays in decoded text, the rest does not
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>x</think><tool_call>"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|pad|>")
    assert max(tokenizer.get_vocab().values()) == 499


def test_digits_and_words_are_cut_as_said() -> None:
    import regex

    def cut(text: str, digits: int) -> list[str]:
        return [match[0] for match in regex.finditer(pieces(digits), text)]

    assert cut("don't add 12345 + x_1\n\n  हिन्दी", 1) == [
        "don", "'t", " add", " ", *"12345", " +", " x", "_", "1", "\n\n", " ", " हिन्दी",
    ]  # fmt: skip
    assert cut("a 12345", 3) == ["a", " ", "123", "45"]
    assert cut("'tis 'sword", 1) == ["'tis", " '", "sword"]


def test_rare_characters_become_bytes_with_unigram() -> None:
    settings = TokenizerSettings(kind="unigram", vocab_size=450, groups=())
    vocabulary = train([*TEXTS, "\u4e00\u4e01\u4e02"], settings).get_vocab()
    assert "\u4e00" not in vocabulary
    assert "犬" in vocabulary
    assert any(piece[0] == " " and len(piece) > 4 for piece in vocabulary)


def test_too_small_or_too_large_a_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="vocab_size = 270: 272 are taken"):
        train(
            TEXTS,
            TokenizerSettings(
                vocab_size=270, reserved=1, groups=("fim", "thinking", "tools", "image")
            ),
        )
    with pytest.raises(UsageError, match="not 30000: there is too little text"):
        train(TEXTS, TokenizerSettings(vocab_size=30_000))
    with pytest.raises(UsageError, match="groups"):
        TokenizerSettings(groups=("music",))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """900 English documents and 100 German ones of 50 characters each, a few of code."""
    english = [{"text": "e" * 50, "language": "en"}] * 900
    german = [{"text": "d" * 50, "language": "de"}] * 100
    return write_documents(tmp_path / "documents", [english[:500], english[500:] + german])


def drawn(documents: Path, **values: Any) -> Counter[str]:
    chosen = sample(SampleSettings(documents=(str(documents),), **values))
    assert list(chosen) == list(chosen)  # each pass is the same
    counts: Counter[str] = Counter()
    for text in chosen:
        counts[text.language] += len(text.text)
    return counts


def test_shares_come_out(documents: Path) -> None:
    # all of German four times: 20,000 characters, as many English
    counts = drawn(documents, shares={"en": 0.5, "de": 0.5})
    assert counts["de"] == 20_000
    assert counts["en"] == pytest.approx(20_000, rel=0.1)
    few = drawn(documents, shares={"en": 3, "de": 1}, characters=8_000)
    assert few["en"] == pytest.approx(6_000, rel=0.2)
    assert few["de"] == pytest.approx(2_000, rel=0.35)


def test_temperature_helps_small_languages(documents: Path) -> None:
    # 9 : 1 becomes 3 : 1 at temperature 2; one pass at most
    counts = drawn(documents, temperature=2.0, repeats=1.0)
    assert counts["de"] == 5_000
    assert counts["en"] == pytest.approx(15_000, rel=0.1)
    assert drawn(documents) == {"en": 45_000, "de": 5_000}


def test_a_language_without_documents_is_refused(documents: Path) -> None:
    with pytest.raises(UsageError, match=r"no documents in fr .* en \(45000 characters\)"):
        drawn(documents, shares={"en": 0.5, "fr": 0.5})
    with pytest.raises(UsageError, match="above 0"):
        drawn(documents, shares={"en": 0.5, "de": 0.0})


def test_the_command_trains_and_writes_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"text": text, "language": "de" if n % 4 == 0 else "en"} for n, text in enumerate(TEXTS)
    ]
    documents = write_documents(tmp_path / "documents", [rows])
    out = tmp_path / "tokenizer"
    command = ["tokenizer", "train", str(out), "--documents", str(documents)]
    assert main([*command, "--vocab-size", "400", "--share", "de=0.5", "--share", "en=0.5"]) == 0
    assert "bpe, 400 tokens" in capsys.readouterr().out
    assert (out / "tokenizer.json").is_file()
    assert '"de": 0.5' in (out / "tokenizer_training.json").read_text()
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command[:2], str(tmp_path / "new"), *command[3:], "--share", "fr=1"]) == 2
    assert "no documents in fr" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
