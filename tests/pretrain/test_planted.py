"""Faults that were hidden in an archive of generated pages, each found by its own detector."""

from __future__ import annotations

import gzip
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.job import prepare_data
from pretrain.data.warc import write_warc
from scripts import plant_warc

EACH = 3
# Words enough that hardly any five in a row come twice in a page.
ENGLISH = (
    "teacher doctor sailor neighbour farmer painter student captain river bridge garden letter "
    "church school winter morning forest village window kitchen engine valley market island",
    "old young quiet small heavy bright narrow broken friendly distant careful strange wooden "
    "empty early famous gentle honest lonely modern patient rusty silver tired",
    "remembered described followed watched painted repaired carried forgot visited trusted feared "
    "opened sold found measured crossed protected changed",
    ("The", "the", "near the", "and"),
)
GERMAN = (
    "Arzt Bauer Maler Schüler Kapitän Fluss Garten Brief Winter Morgen Wald Markt Nachbar Bürger "
    "Bäcker Müller Turm Hügel Weg Vogel Ofen Schlüssel Tisch Zug",
    "alte junge stille kleine schwere helle enge müde freundliche ferne strenge hölzerne leere "
    "frühe berühmte sanfte ehrliche einsame neue geduldige rostige schöne graue grüne",
    "vergaß beschrieb verfolgte sah malte besuchte trug fürchtete suchte fand öffnete verkaufte "
    "kannte hörte schützte veränderte überquerte brauchte",
    ("Der", "den", "hinter dem", "und"),
)


def page(seed: int, language: str) -> str:
    rng = random.Random(seed)
    nouns, adjectives, verbs, (the, object_, near, then) = GERMAN if language == "de" else ENGLISH

    def one(words: str) -> str:
        return rng.choice(words.split())

    def sentence() -> str:
        first = f"{the} {one(adjectives)} {one(nouns)} {one(verbs)} {object_} {one(nouns)}"
        second = f"{near} {one(adjectives)} {one(nouns)}"
        return f"{first} {second} {then} {one(verbs)} {object_} {one(nouns)}."

    paragraphs = "".join(f"<p>{' '.join(sentence() for _ in range(4))}</p>" for _ in range(8))
    return f'<html lang="{language}"><body><main>{paragraphs}</main></body></html>'


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "pages").mkdir()
    for i in range(6 * EACH):
        (folder / "pages" / f"en{i}.html").write_text(page(i, "en"))
        (folder / "pages" / f"de{i}.html").write_text(page(i, "de"))
    questions = [" ".join(random.Random(i).sample(ENGLISH[0].split(), 16)) for i in range(5)]
    with gzip.open(folder / "items.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"question": one}) + "\n" for one in questions))
    pages = plant_warc.plant(folder / "pages", folder / "items.jsonl.gz", 1000, EACH)
    (folder / "crawl").mkdir()
    write_warc(folder / "crawl" / "0.warc.gz", pages)
    plant_warc.damage(folder / "crawl" / "0.warc.gz")
    items = {"name": "decontaminate", "against": {"items": str(folder / "items.jsonl.gz")}}
    prepare_data(
        input=folder / "crawl",
        output=folder / "clean",
        steps=["url", *plant_warc.STEPS, items, "pii"],
        stages=[{"name": f"{kind}_duplicates", "rejects": True} for kind in ("exact", "near")],
        rejects=True,
        workers=1,
    )
    return folder / "clean"


def test_what_is_planted_is_found_by_its_own_detector(output: Path) -> None:
    found = plant_warc.found(output)
    for kind in ("exact", "near", "personal", "evaluation", "encoding", "spam-text", "spam-url"):
        assert found[kind] == {"read": EACH, "found": EACH}, kind
    assert found["reading"] == {"encoding detected": EACH, "damaged": 1}


def test_the_example_of_the_manual_has_what_check_needs() -> None:
    manual = Path(__file__).parents[2].joinpath("docs/pretraining_data.md").read_text()
    example = tomllib.loads(manual.partition("# planted.toml\n")[2].partition("```")[0])
    assert "pretrain data planted.toml" in str(plant_warc.__doc__)
    names = [one if isinstance(one, str) else one["name"] for one in example["steps"]]
    assert example["steps"][1:5] == list(plant_warc.STEPS)
    assert (names[0], *names[5:]) == ("url", "decontaminate", "pii")
    assert example["rejects"] is True and example["stages"] == [
        {"name": f"{kind}_duplicates", "rejects": True} for kind in ("exact", "near")
    ]


def test_nothing_else_is_dropped(output: Path) -> None:
    found: dict[str, Any] = plant_warc.found(output)
    # Of the generated pages, one is damaged; of both duplicates of a pair one is left.
    assert found["documents left"] == 2 * 6 * EACH - 1 - EACH  # less those with items
    rejected = plant_warc.documents(output / "00_steps.rejects")
    assert all(address.startswith(plant_warc.HOST) for address in rejected)
