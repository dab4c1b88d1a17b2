"""A real WARC with known faults, and whether a job found them.

``plant`` writes the pages of a folder of HTML (``scripts/fetch_debian_corpus.sh``) as a WARC and
hides in it exact and near duplicates, spam, personal data, evaluation items, pages with a wrong
encoding and one damaged record. Personal data and evaluation items stand in pages of the folder,
after a paragraph in the middle, so that nothing else is wrong with those. ``check`` says for each
kind what the output of a job still has. The address of a planted page names its kind and the page
that it was made of.

    python scripts/plant_warc.py plant FOLDER crawl/00000.warc.gz --evaluation gsm8k_test.jsonl.gz
    pretrain data input=crawl output=clean
    python scripts/plant_warc.py check clean
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pretrain.data.warc import write_warc

HOST, REAL = "http://planted.example", "http://manuals.example"
KINDS = ("exact", "near", "personal", "evaluation", "encoding", "spam-text", "spam-url")
HTML = {"Content-Type": "text/html; charset=utf-8"}
EACH = 20
FRAME = "<html><head><title>{0}</title></head><body><main>{0}</main></body></html>"
PERSON = (
    "<p>The office of the district can be reached on working days between nine and five, and the "
    "people at the desk are glad to help with every form. Write to maria.lopez{0}@mail-example.com "
    "or call +49 30 9018{0:02d} 4711 when you are late. The account of the office is "
    "DE89 3704 0044 0532 0130 00, and its server answers at 81.169.145.{0}. Those who have "
    "a question about the library, the park or the schools will find the right person there. "
    "Forms for the winter are sent out in autumn. Nothing has to be paid for them.</p>"
)
SECRETS = re.compile(r"maria\.lopez|9018\d\d|DE89 3704|81\.169\.145")
ITEM = "A question of an examination: "
MIRROR = b"<p>This is a mirror of the page above.</p>"
Page = tuple[str, bytes, dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    plant_ = commands.add_parser("plant")
    plant_.add_argument("folder", type=Path)
    plant_.add_argument("warc", type=Path)
    plant_.add_argument("--pages", type=int, default=1000, help="drawn from the folder")
    plant_.add_argument("--evaluation", type=Path, help="JSON lines with a question")
    check_ = commands.add_parser("check")
    check_.add_argument("output", type=Path)
    options = parser.parse_args()
    if options.command == "check":
        print(json.dumps(found(options.output), indent=1))
        return
    pages = list(plant(options.folder, options.pages, options.evaluation))
    options.warc.parent.mkdir(parents=True, exist_ok=True)
    print(f"{write_warc(options.warc, pages)} pages in {options.warc}")
    damage(options.warc)


def plant(folder: Path, number: int, evaluation: Path | None) -> Iterator[Page]:
    """The pages of the folder with the planted ones among them."""
    rng = random.Random(0)
    paths = sorted(folder.rglob("*.html"))
    paths = rng.sample(paths, min(number, len(paths)))
    real = [(f"{REAL}/{p.relative_to(folder).as_posix()}", p.read_bytes(), HTML) for p in paths]
    real.sort(key=lambda page: -len(page[1]))
    fit = [page for page in real[EACH:] if page[1].count(b"</p>") > 3]
    exact, near, rest = fit[:EACH], fit[EACH : 2 * EACH], fit[2 * EACH :]
    # What is inserted is English: a job may drop it as a foreign paragraph elsewhere.
    english = [page for page in rest if b'lang="en' in page[1]]
    personal, items = english[:EACH], english[EACH : 2 * EACH]
    german = [page for page in rest if b"\xc3\xbc" in page[1] and page not in english][:EACH]
    questions = read_questions(evaluation)
    changed = personal + items[: len(questions)] + german
    pages = [page for page in real if page not in changed]
    pages += renamed("exact", exact, lambda i, body: body)
    pages += renamed("near", near, lambda i, body: body.replace(b"</body>", MIRROR + b"</body>"))
    pages += renamed("personal", personal, lambda i, body: insert(body, PERSON.format(i)))
    pages += renamed(
        "evaluation", items, lambda i, body: insert(body, f"<p>{ITEM}{questions[i]}</p>")
    )
    pages += renamed("encoding", german, lambda i, body: in_latin_1(body))
    pages += spam()
    rng.shuffle(pages)
    yield from pages


def renamed(kind: str, pages: list[Page], change: Callable[[int, bytes], bytes]) -> Iterator[Page]:
    """Pages changed one way, under the addresses of that kind."""
    for i, (address, body, headers) in enumerate(pages):
        yield f"{HOST}/{kind}/{address.removeprefix(REAL + '/')}", change(i, body), headers


def insert(body: bytes, html: str) -> bytes:
    """After the paragraph in the middle."""
    parts = body.split(b"</p>")
    half = len(parts) // 2
    return b"</p>".join(parts[:half]) + b"</p>" + html.encode() + b"</p>".join(parts[half:])


def in_latin_1(body: bytes) -> bytes:
    """Bytes that are not what the page and its server say they are."""
    return body.decode("utf-8", "replace").encode("latin-1", "xmlcharrefreplace")


def spam() -> Iterator[Page]:
    for i in range(EACH):
        text = "<p>" + "Buy cheap pills online now, best price, best price! " * 30 + "</p>"
        yield f"{HOST}/spam-text/{i}", FRAME.format(text).encode(), HTML
        yield f"{HOST}/spam-url/buy-viagra-{i}", FRAME.format(PERSON.format(i)).encode(), HTML


def read_questions(path: Path | None) -> list[str]:
    if path is None:
        return []
    with gzip.open(path, "rt") as file:
        return [json.loads(line)["question"] for _, line in zip(range(EACH), file, strict=False)]


def damage(warc: Path) -> None:
    """Zeros over the middle of the member in the middle of the file."""
    data = bytearray(warc.read_bytes())
    at = data.index(b"\x1f\x8b\x08", len(data) // 2)
    data[at + 100 : at + 160] = bytes(60)
    warc.write_bytes(data)


def found(output: Path) -> dict[str, object]:
    """What is left of the planted, by kind, and what the steps and stages dropped."""
    left: dict[str, str] = {}  # address -> text
    for shard in sorted((output / "documents").glob("*.jsonl.gz")):
        with gzip.open(shard, "rt", encoding="utf-8") as lines:
            rows = map(json.loads, lines)
            left |= {row["metadata"].get("url", ""): row["text"] for row in rows}
    planted: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for address, text in left.items():
        if address.startswith(HOST):
            kind, _, page = address.removeprefix(HOST + "/").partition("/")
            planted[kind][page] = text
    files = [path for path in output.glob("*/counts.json") if path.parent.suffix != ".rejects"]
    stages = [json.loads(path.read_text()) for path in sorted(files)]
    rules = [*stages[0]["steps"], *stages[1:]]
    personal, german = (list(planted[kind].values()) for kind in ("personal", "encoding"))
    return {
        "planted of each kind": EACH,
        "documents left": len(left),
        "pages left": {kind: len(pages) for kind, pages in planted.items()},
        "pairs left whole": {
            kind: sum(f"{REAL}/{page}" in left for page in planted[kind])
            for kind in ("exact", "near")
        },
        "evaluation items left": sum(ITEM in text for text in planted["evaluation"].values()),
        "personal data left": sum(bool(SECRETS.search(text)) for text in personal),
        "mail addresses replaced": sum("[EMAIL]" in text for text in personal),
        "read with the wrong encoding": sum("\ufffd" in t or "\u00c3" in t for t in german),
        "reading": stages[0]["reading"],
        "files": stages[0]["files"],
        "dropped": {one["stage"]: one["dropped"] for one in rules if one["dropped"]},
        "planted pages dropped by the steps": rejected(output),
    }


def rejected(output: Path) -> dict[str, dict[str, int]]:
    """Of each kind, by step and reason; of a job with ``rejects = true``."""
    why: dict[str, Counter[str]] = {}
    for shard in sorted((output / "00_steps.rejects").glob("*.jsonl.gz")):
        with gzip.open(shard, "rt", encoding="utf-8") as lines:
            for about in (json.loads(line)["metadata"] for line in lines):
                if about["url"].startswith(HOST):
                    kind = about["url"].removeprefix(HOST + "/").partition("/")[0]
                    reason = f"{about['dropped_by']}: {about['reason']}"
                    why.setdefault(kind, Counter())[reason] += 1
    return {kind: dict(reasons.most_common()) for kind, reasons in sorted(why.items())}


if __name__ == "__main__":
    main()
