"""Near-duplicates, diversity, filters by content, the report page."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import data_gen
from data_gen.diversity import Survey, bleu, distinct, self_bleu
from data_gen.filters import read_filters
from data_gen.near_duplicates import MINIMA, NearDuplicates, band_length
from tests.data_gen.chat_server import MODEL, ChatServer

WORDS = [f"w{i}" for i in range(400)]


def variant(words, n_changed, draw):
    """The text with that many words in a row replaced, so n + 4 five-grams are lost."""
    start = draw.randrange(20, len(words) - n_changed - 20)
    return [
        *words[:start],
        *(f"new{draw.random()}" for _ in range(n_changed)),
        *words[start + n_changed :],
    ]


def jaccard(a, b):
    grams = [{tuple(one[i : i + 5]) for i in range(len(one) - 4)} for one in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_pairs_well_above_the_threshold_are_found_and_well_below_are_not() -> None:
    draw = random.Random(4)
    found = {True: 0, False: 0}
    for _ in range(60):
        words = draw.choices(WORDS, k=200)
        for alike, n_changed in ((True, 5), (False, 40)):
            other = variant(words, n_changed, draw)
            assert (jaccard(words, other) > 0.9) is alike
            assert alike or jaccard(words, other) < 0.67
            finder = NearDuplicates(0.8)
            assert finder.like(" ".join(words)) is None
            found[alike] += finder.like(" ".join(other)) == 0
    assert found[True] == 60
    assert found[False] <= 1


def test_the_signature_estimates_the_jaccard_similarity() -> None:
    draw = random.Random(5)
    errors = []
    for n_changed in (2, 10, 30, 60):
        words = draw.choices(WORDS, k=200)
        other = variant(words, n_changed, draw)
        one = NearDuplicates()
        a, b = (one._signature(" ".join(text)) for text in (words, other))
        errors.append((a == b).mean() - jaccard(words, other))
    assert max(map(abs, errors)) < 4 * 0.5 / MINIMA**0.5


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_bands_meet_pairs_at_the_threshold(threshold) -> None:
    length = band_length(threshold)
    assert 1 - (1 - threshold**length) ** (MINIMA // length) >= 0.94


def test_diversity_by_hand() -> None:
    texts = [["a", "b", "c", "d"], ["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert distinct(texts, 1) == 8 / 12
    assert distinct(texts, 2) == 6 / 9
    assert distinct([], 1) is None
    assert bleu(["a", "b", "c", "d"], [["a", "b", "c", "d"]]) == pytest.approx(1.0)
    # Precisions 3/4, 2/3, 1/2 and, for none of 1, 1/2; lengths are equal.
    expected = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert bleu(["a", "b", "c", "x"], [["a", "b", "c", "d"]]) == pytest.approx(expected)
    assert self_bleu([["a", "b"]]) is None
    assert self_bleu(texts[:2]) == pytest.approx(1.0)


def test_pass_rates_count_prompts_and_dropped_samples() -> None:
    survey = Survey()
    for source, outcomes in {"a": "ww", "b": "cw", "c": "cc", "d": "ce"}.items():
        for one in outcomes:
            outcome = {"w": "wrong", "c": "correct", "e": "error"}[one]
            survey.see({"source": source, "outcome": outcome, "dropped": "x", "text": ""})
    assert survey.found()["pass_rate"] == {"0": 1, "1": 2, "1/2 to 3/4": 1}


def reasons(given, texts):
    (one,) = read_filters(given)
    return [one({"text": text, "dropped": ""}) for text in texts]


def test_filters_by_content() -> None:
    german = "Das Haus steht am Rand der Stadt, und niemand wohnt mehr darin."
    english = "The house stands at the edge of the town, and nobody lives there any more."
    assert reasons({"name": "language", "code": "de"}, [german, english]) == ["", "not in de"]
    hit = "word of the toxicity list"
    texts = ["What a load of shit!", "Shitake and Scunthorpe.", english]
    assert reasons("toxic_words", texts) == [hit, "", ""]
    own = {"name": "toxic_words", "words": ["edge"]}
    assert reasons(own, texts) == ["", "", hit]
    assert reasons("near_duplicates", [english, german, english]) == ["", "", "near-duplicate"]


@pytest.mark.parametrize(
    "given", [{"name": "language", "code": "xx"}, {"name": "near_duplicates", "threshold": 2}]
)
def test_a_filter_that_cannot_work_is_told(given) -> None:
    with pytest.raises(data_gen.UsageError):
        read_filters(given)


class Page(HTMLParser):
    """Collects tags, and what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_data(self, data) -> None:
        self.text += data


def test_the_report_shows_rows_of_every_reason_and_runs_no_text_of_models(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script></pre><img src=x onerror=alert(2)>"

    def behave(body):
        return "" if body["seed"] % 2 else f"{hostile} {body['seed']}"

    documents = [f"Document {i}" for i in range(20)]
    with ChatServer(behave) as server:
        address = data_gen.Server(server.url, MODEL)
        data = data_gen.rephrase(
            documents, address, tmp_path / "out", originals=False, filters=(), quiet=True
        )
    html = (tmp_path / "out/report.html").read_text()
    page = Page()
    page.feed(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count(hostile) >= len(data)
    assert page.tags.count("details") == len(data) + min(8, 20 - len(data))
    assert "width=device-width" in html
    assert not re.search(r"(?:src|href)=.?http", html)
    diversity = json.loads((tmp_path / "out/summary.json").read_text())["diversity"]
    assert diversity["texts"] == len(data)
    assert (
        f"| distinct_1 | {diversity['distinct_1']:,} |" in (tmp_path / "out/README.md").read_text()
    )
