"""The rules against datatrove's own, and per language.

For the parity tests datatrove's filters get our words, so that what is compared are the rules.
"""

from __future__ import annotations

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.utils.text import PUNCTUATION_SET
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import heuristics
from pretrain.data.steps import Step
from pretrain.data.words import Words, is_symbol, words_of

PAIRS: list[tuple[Step, BaseFilter]] = [
    (heuristics.GopherRepetition(), GopherRepetitionFilter()),
    (heuristics.GopherQuality(min_words=5), GopherQualityFilter(min_doc_words=5)),
    (heuristics.C4(), C4QualityFilter(filter_no_terminal_punct=False)),
    (heuristics.FineWeb(), FineWebQualityFilter()),
]
VOCABULARY = (
    *("the", "of", "and", "to", "that", "with", "a", "be", "have", "page", "cookies", "x", "y"),
    *("extraordinarily", "...", "…", "#", "-", "•", "42", "3.14", "{", "}", "“quoted”", "[1]"),
    *("lorem", "ipsum", "javascript", "Javascript", "policy", "privacy", ".", ",", "!", "?"),
)
PIECES = st.sampled_from([*VOCABULARY, "\n", "\n\n", ".\n", "uses cookies", "privacy policy"])


@pytest.fixture(autouse=True)
def our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(text: str, language: str) -> list[str]:
        return words_of(text).words

    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        monkeypatch.setattr(module, "split_into_words", words)

    # A bullet is no word to us.
    symbols = PUNCTUATION_SET | {"•"}
    monkeypatch.setattr(gopher_quality_filter, "PUNCTUATION_SET", symbols)

    def sentences(line: str, language: str) -> list[str]:
        return [line] * heuristics.n_sentences(line)

    monkeypatch.setattr(c4_filters, "split_into_sentences", sentences)


def document(text: str, language: str = "en") -> Document:
    return Document(text=text, id="0", metadata={"language": language})


def reference(block: BaseFilter, doc: Document) -> str | None:
    kept, reason = get_filter_result(block.filter(doc))
    return None if kept else reason


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=120), st.integers(1, 4))
def test_verdicts_reasons_and_texts_are_datatroves(pieces: list[str], times: int) -> None:
    text = " ".join(pieces * times)
    if not any(not is_symbol(word) for word in words_of(text).words):
        return  # datatrove divides by the number of words
    for ours, theirs in PAIRS:
        mine, other = document(text), document(text)
        assert ours.check(mine) == reference(theirs, other), ours.name
        assert mine.text == other.text


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(["ab", "cd", "e", "f"]), min_size=10, max_size=80), st.integers(2, 10)
)
def test_n_gram_counts_are_datatroves(words: list[str], n: int) -> None:
    ours = Words(words)
    grams = gopher_repetition_filter.get_n_grams(words, n)
    assert heuristics.top_n_gram_characters(ours, n) == (
        gopher_repetition_filter.find_top_duplicate(grams)
    )
    # By tuples: datatrove's joined strings confuse "ab c" with "a bc".
    exact = sum(map(len, _repeated(words, n)))
    assert heuristics.repeated_n_gram_characters(ours, n, -1) == exact
    bounded = heuristics.repeated_n_gram_characters(ours, n, exact + 5)
    assert exact <= bounded <= exact + 5


def _repeated(words: list[str], n: int) -> list[str]:
    seen, found, at = set(), [], 0
    while at <= len(words) - n:
        gram = tuple(words[at : at + n])
        if gram in seen:
            found.append("".join(gram))
        at += n if gram in seen else 1
        seen.add(gram)
    return found


PROSE = {
    "en": "The library was opened in 1912, and most of the well-known books have been there since. "
    "Readers who live in the city come with their children to the large hall on the first floor.",
    "de": "Die Bibliothek wurde im Jahr 1912 eröffnet, und die meisten Bücher sind seither dort. "
    "Leserinnen aus der ganzen Umgebung kommen mit ihren Kindern in den großen Veranstaltungssaal.",
    "es": "La biblioteca se abrió en el año 1912 y la mayoría de los libros está allí "
    "desde entonces. Los lectores que viven en la ciudad vienen con sus hijos a la sala grande.",
    "zh": "图书馆于一九一二年开放，大部分书籍从那时起就一直在那里。"
    "住在城里的读者带着孩子来到一楼的大厅。"
    "这里有很多人在看书，也有人在写字，大家都很安静。他们不说话，因为这是一个学习的地方。",
    "hi": "पुस्तकालय सन् उन्नीस सौ बारह में खोला गया था और अधिकांश पुस्तकें तब से वहाँ हैं। शहर में रहने वाले पाठक "
    "अपने बच्चों के साथ पहली मंजिल के बड़े कक्ष में आते हैं और वहाँ बैठकर पढ़ते हैं।",
}


@pytest.mark.parametrize("language", PROSE)
def test_prose_passes_in_its_own_language(language: str) -> None:
    doc = document(PROSE[language], language)
    step = heuristics.GopherQuality(min_words=20)
    assert step.check(doc) is None


@pytest.mark.parametrize("language", ["de", "es", "zh", "hi"])
def test_english_rules_drop_other_languages(language: str) -> None:
    doc = document(PROSE[language], "en")
    assert heuristics.GopherQuality(min_words=20).check(doc) is not None


def test_a_language_without_rules_is_not_asked_for_stop_words() -> None:
    text = "Maktaba ilifunguliwa mwaka elfu moja ikiwa vitabu vingi vilikuwapo tangu wakati huo."
    assert heuristics.GopherQuality(min_words=5).check(document(text, "sw")) is None
    assert (
        heuristics.GopherQuality(min_words=5).check(document(text, "de"))
        == "gopher_enough_stop_words"
    )


def test_a_german_cookie_banner_goes_and_the_page_stays() -> None:
    doc = document(PROSE["de"] + "\nDiese Seite verwendet Cookies für die Werbung.", "de")
    assert heuristics.C4(min_sentences=2).check(doc) is None
    assert doc.text == PROSE["de"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "The well-known libc6.deb isn't a/b.",
            ["The", "well-known", "libc6.deb", "isn't", "a/b", "."],
        ),
        ("(5) «ja»...", ["(", "5", ")", "«", "ja", "»", ".", ".", "."]),
        ("我们 use GPT-4", ["我", "们", "use", "GPT-4"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text).words == words


@pytest.mark.parametrize(
    ("line", "n"), [("One. Two! Three", 3), ("v3.14 is out.", 1), ("他来了。我走了。", 2), ("", 1)]
)
def test_sentences(line: str, n: int) -> None:
    assert heuristics.n_sentences(line) == n
