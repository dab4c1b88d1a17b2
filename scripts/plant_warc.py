"""A real WARC with known faults, and whether a job found them.

``plant`` writes the pages of a folder of HTML (``scripts/fetch_debian_corpus.sh``) as a WARC and
hides in it exact and near duplicates, spam, personal data, evaluation items, pages with a wrong
encoding and one damaged record. What is planted stands in pages that no step would drop without
it, so each detector sees every page that is meant for it. ``check`` says for each kind how many
pages were read, and how many its own detector found; it needs the steps and stages that
``planted.toml`` in ``docs/pretraining_data.md`` names, with their ``rejects``. The address of a
planted page names its kind and the page that it was made of.

    python scripts/plant_warc.py plant FOLDER crawl/00000.warc.gz --evaluation gsm8k_test.jsonl.gz
    pretrain data planted.toml
    python scripts/plant_warc.py check clean
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document

from pretrain.data.decoding import decode
from pretrain.data.registry import make_step
from pretrain.data.steps import Step
from pretrain.data.warc import write_warc

HOST, REAL = "http://planted.example", "http://manuals.example"
HTML = {"Content-Type": "text/html; charset=utf-8"}
DAMAGED, MEMBER = f"{HOST}/damaged", b"\x1f\x8b\x08"
EACH = 25
# The steps that a page passes before it is planted in; language leaves English in English pages.
STEPS = ("extract", {"name": "language", "keep": ["en", "de", "es"]}, "gopher_repetition", "nsfw")
FRAME = "<html><head><title>{0}</title></head><body><main>{0}</main></body></html>"
PERSON = (
    "<p>The office of the district can be reached on working days between nine and five, and the "
    "people at the desk are glad to help with every form. Write to maria.lopez{0}@mail-example.com "
    "or call +49 30 9018{0:02d} 4711 when you are late. The account of the office is "
    "DE89 3704 0044 0532 0130 00, and its server answers at 81.169.145.{0}. Those who have "
    "a question about the library, the park or the schools will find the right person there. "
    "Forms for the winter are sent out in autumn. Nothing has to be paid for them.</p>"
)
SECRETS = ("maria.lopez", "4711", "DE89 3704", "81.169.145")
MARKS = ("[EMAIL]", "[PHONE]", "[IBAN]", "[IP]")
SPAM = "Buy your cheap pills online now, this is the best price that you will find on the web! "
MIRROR = "<p>This is a mirror of the page.</p>"
LONG = 2000  # characters: of these, a sentence more leaves nearly the same page
Page = tuple[str, bytes, dict[str, str]]  # address, HTML, headers


@dataclass(frozen=True)
class Kind:
    """Which pages it is planted in, and how they are changed; the number counts from 0."""

    name: str
    fits: Callable[[bytes], bool]
    change: Callable[[int, bytes], bytes]
    keeps_page: bool = False  # beside the changed one
    shows: bool = True  # in the text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    plant_ = commands.add_parser("plant")
    plant_.add_argument("folder", type=Path)
    plant_.add_argument("warc", type=Path)
    plant_.add_argument("--pages", type=int, default=1000, help="drawn from the folder")
    plant_.add_argument("--each", type=int, default=EACH, help="planted pages of each kind")
    plant_.add_argument("--evaluation", type=Path, required=True, help="JSON lines with a question")
    check_ = commands.add_parser("check")
    check_.add_argument("output", type=Path)
    options = parser.parse_args()
    if options.command == "check":
        print(json.dumps(found(options.output), indent=1))
        return
    pages = plant(options.folder, options.evaluation, options.pages, options.each)
    options.warc.parent.mkdir(parents=True, exist_ok=True)
    print(f"{write_warc(options.warc, pages)} pages in {options.warc}")
    damage(options.warc)


def plant(folder: Path, evaluation: Path, number: int, each: int = EACH) -> list[Page]:
    """The pages of the folder with the planted ones among them."""
    rng = random.Random(0)
    paths = sorted(folder.rglob("*.html"))
    paths = rng.sample(paths, min(number, len(paths)))
    real = [(f"{REAL}/{p.relative_to(folder).as_posix()}", p.read_bytes(), HTML) for p in paths]
    steps = [make_step(entry) for entry in STEPS]
    planted = list(spam(each))
    for kind in kinds(read_questions(evaluation, each)):
        fit = (page for page in real if kind.fits(page[1]) and reaches(page[1], kind, steps))
        chosen = list(islice(fit, each))
        if len(chosen) < each:
            raise SystemExit(f"{kind.name}: {len(chosen)} pages of {folder} fit, not {each}")
        # No page serves two kinds.
        real = [page for page in real if page not in chosen]
        planted += renamed(kind, chosen)
    _, body, headers = real.pop()
    everything = [*real, *planted, (DAMAGED, body, headers)]
    rng.shuffle(everything)
    return everything


def kinds(questions: Sequence[str]) -> tuple[Kind, ...]:
    """In the order in which they choose; what is inserted is English."""
    return (
        Kind("encoding", is_german, lambda i, body: in_latin_1(body), shows=False),
        Kind("exact", is_english, lambda i, body: body, keeps_page=True, shows=False),
        Kind("near", is_english, lambda i, body: insert(body, MIRROR), keeps_page=True),
        Kind("personal", is_english, lambda i, body: insert(body, PERSON.format(i))),
        Kind("evaluation", is_english, lambda i, body: insert(body, f"<p>{questions[i]}</p>")),
    )


def reaches(body: bytes, kind: Kind, steps: Sequence[Step]) -> bool:
    """Whether the page passes the steps, and what is planted in it does, too: the extraction leaves
    out what it takes for a menu."""
    before = text_after(body, steps)
    if not kind.shows or len(before) < LONG:
        return len(before) >= LONG
    return text_after(kind.change(0, body), steps) not in ("", before)


def text_after(body: bytes, steps: Sequence[Step]) -> str:
    """Nothing of a page that is dropped."""
    document = Document(text=decode(body)[0], id="", metadata={"html": True})
    return document.text if all(step.check(document) is None for step in steps) else ""


def is_english(body: bytes) -> bool:
    return body.count(b"</p>") > 3 and b'lang="en' in body


def is_german(body: bytes) -> bool:
    """With an umlaut, in UTF-8."""
    return b"\xc3\xbc" in body and b'lang="de' in body


def renamed(kind: Kind, pages: Sequence[Page]) -> Iterator[Page]:
    """Pages changed one way, under addresses that say so."""
    for i, (address, body, headers) in enumerate(pages):
        if kind.keeps_page:
            yield address, body, headers
        name = address.removeprefix(REAL + "/")
        yield f"{HOST}/{kind.name}/{name}", kind.change(i, body), headers


def insert(body: bytes, html: str) -> bytes:
    """After the paragraph in the middle."""
    parts = body.split(b"</p>")
    half = len(parts) // 2
    return b"</p>".join(parts[:half]) + b"</p>" + html.encode() + b"</p>".join(parts[half:])


def in_latin_1(body: bytes) -> bytes:
    """Bytes that are not what the page and its server say they are."""
    return body.decode("utf-8", "replace").encode("latin-1", "xmlcharrefreplace")


def spam(each: int) -> Iterator[Page]:
    """By its text, and by its address alone."""
    for i in range(each):
        yield f"{HOST}/spam-text/{i}", FRAME.format(f"<p>{SPAM * 30}</p>").encode(), HTML
        yield f"{HOST}/spam-url/buy-viagra-{i}", FRAME.format(PERSON.format(i)).encode(), HTML


def read_questions(path: Path, number: int) -> list[str]:
    """The longest: short items say nothing and are not looked for."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file]
    return sorted(questions, key=len, reverse=True)[:number]


def damage(warc: Path) -> None:
    """Zeros inside the member of the page that is meant for it."""
    data = bytearray(warc.read_bytes())
    at = data.index(MEMBER)
    while DAMAGED.encode() not in head_of(bytes(data[at : at + 2000])):
        at = data.index(MEMBER, at + 1)
    data[at + 100 : at + 160] = bytes(60)
    warc.write_bytes(data)


def head_of(member: bytes) -> bytes:
    """The headers of its record; empty where it only begins like a member."""
    try:
        return zlib.decompressobj(wbits=31).decompress(member, 600)
    except zlib.error:
        return b""


def found(output: Path) -> dict[str, Any]:
    """Of each kind: pages read, pages that its detector saw and those it found; what is left."""
    kept, dropped = documents(output / "00_steps"), documents(output / "00_steps.rejects")
    later: dict[str, str] = {}  # address -> the stage that dropped it
    for folder in output.glob("0[1-9]_*.rejects"):
        later |= dict.fromkeys(documents(folder), folder.name.removesuffix(".rejects")[3:])
    result: dict[str, Any] = {}
    for kind in ("exact", "near", "personal", "evaluation", "encoding", "spam-text", "spam-url"):
        start = f"{HOST}/{kind}/"
        pages = {a: row for a, row in (kept | dropped).items() if a.startswith(start)}
        hits = [detected(kind, address, row, later) for address, row in pages.items()]
        others = Counter(
            f"{row['metadata']['dropped_by']}: {row['metadata']['reason']}"
            for hit, row in zip(hits, pages.values(), strict=True)
            if not hit and "dropped_by" in row["metadata"]
        )
        result[kind] = {"read": len(pages), "found": sum(hits)}
        if others:
            result[kind]["dropped before"] = dict(others)
    counts = json.loads((output / "00_steps" / "counts.json").read_text(encoding="utf-8"))
    left = documents(output / "documents")
    return {**result, "reading": counts["reading"], "documents left": len(left)}


def detected(kind: str, address: str, row: dict[str, Any], later: dict[str, str]) -> bool:
    """Whether its own detector found the planted page."""
    about, text = row["metadata"], row["text"]
    by = about.get("dropped_by")
    match kind:
        case "exact" | "near":
            original = f"{REAL}/{address.removeprefix(f'{HOST}/{kind}/')}"
            return f"{kind}_duplicates" in (later.get(address), later.get(original))
        case "personal":
            is_clean = not any(secret in text for secret in SECRETS)
            return by is None and is_clean and all(mark in text for mark in MARKS)
        case "evaluation":
            return by == "decontaminate"
        case "encoding":
            return by is None and "\ufffd" not in text and "\u00c3" not in text
        case "spam-text":
            return by == "gopher_repetition"
    return by == "url"


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """By address."""
    rows: dict[str, dict[str, Any]] = {}
    for shard in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(shard, "rt", encoding="utf-8") as lines:
            rows |= {row["metadata"].get("url", ""): row for row in map(json.loads, lines)}
    return rows


if __name__ == "__main__":
    main()
