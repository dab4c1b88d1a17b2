"""A real WARC with known faults, and whether a job found them.

``plant`` writes the pages of a folder of HTML (``scripts/fetch_debian_corpus.sh``) as a WARC and
hides in it exact and near duplicates, spam, personal data, evaluation items, pages with a wrong
encoding and one damaged record. ``check`` says for each kind how many of them the output of a job
still has. The address of a planted page names its kind.

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
from collections.abc import Iterator
from pathlib import Path

from pretrain.data.warc import write_warc

HOST = "http://planted.example"
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
    real = [
        (f"http://manuals.example/{p.relative_to(folder).as_posix()}", p.read_bytes(), HTML)
        for p in paths
    ]
    long = sorted(real, key=lambda page: -len(page[1]))[EACH : 3 * EACH]
    planted = [*duplicates(long), *made(), *evaluation_pages(evaluation)]
    pages = real + planted
    rng.shuffle(pages)
    yield from pages


def duplicates(pages: list[Page]) -> Iterator[Page]:
    for i, (_, body, _) in enumerate(pages[:EACH]):
        yield f"{HOST}/exact/{i}", body, HTML
    for i, (_, body, _) in enumerate(pages[EACH:]):
        # Another last sentence: as mirrors differ.
        changed = re.sub(rb"</body>", b"<p>This is a mirror of the page above.</p></body>", body)
        yield f"{HOST}/near/{i}", changed, HTML


def made() -> Iterator[Page]:
    for i in range(EACH):
        spam = "<p>" + "Buy cheap pills online now, best price, best price! " * 30 + "</p>"
        yield f"{HOST}/spam-text/{i}", FRAME.format(spam).encode(), HTML
        yield f"{HOST}/spam-url/buy-viagra-{i}", FRAME.format(PERSON.format(i)).encode(), HTML
        yield f"{HOST}/personal/{i}", FRAME.format(PERSON.format(i)).encode(), HTML
        german = f"<p>Die Bücher für {i} Leser wären schön.</p>" * 9
        yield f"{HOST}/encoding/{i}", FRAME.format(german).encode("latin-1"), HTML


def evaluation_pages(path: Path | None) -> Iterator[Page]:
    if path is None:
        return
    with gzip.open(path, "rt") as file:
        for i, line in zip(range(EACH), file, strict=False):
            question = json.loads(line)["question"]
            text = FRAME.format(f"{PERSON.format(i)}<p>{question}</p>")
            yield f"{HOST}/evaluation/{i}", text.encode(), HTML


def damage(warc: Path) -> None:
    """Zeros over the middle of the member in the middle of the file."""
    data = bytearray(warc.read_bytes())
    at = data.index(b"\x1f\x8b\x08", len(data) // 2)
    data[at + 100 : at + 160] = bytes(60)
    warc.write_bytes(data)


def found(output: Path) -> dict[str, object]:
    """Planted pages by kind that came in and are left, and what the reading counted."""
    left: Counter[str] = Counter()
    texts: dict[str, list[str]] = {}
    for shard in sorted((output / "documents").glob("*.jsonl.gz")):
        with gzip.open(shard, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                url = row["metadata"].get("url", "")
                if url.startswith(HOST):
                    kind = url.split("/")[3]
                    left[kind] += 1
                    texts.setdefault(kind, []).append(row["text"])
    counts = json.loads((output / "00_steps" / "counts.json").read_text())
    mails = sum("@mail-example.com" in text for text in texts.get("personal", []))
    dropped = {step["stage"]: step["dropped"] for step in counts["steps"]}
    return {
        "planted of each kind": EACH,
        "left": dict(left),
        "mail addresses left in personal": mails,
        "reading": counts["reading"],
        "files": counts["files"],
        "url": dropped.get("url", {}),
        "gopher_repetition": dropped.get("gopher_repetition", {}),
    }


if __name__ == "__main__":
    main()
