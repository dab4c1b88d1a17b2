"""Documents per second and quality of the data pipeline beside its peers: one run, paired.

Each repetition runs both sides one after the other on the same documents; the JSON line has the
medians, in CPU seconds of the process and its children, since wall time is another program's
business. FOLDER is what ``scripts/fetch_debian_corpus.sh`` fetched.

    python scripts/bench/data.py extract FOLDER     # F1 against .txt twins; trafilatura
    python scripts/bench/data.py filters FOLDER     # Gopher, C4 and FineWeb rules; datatrove's
    python scripts/bench/data.py whole FOLDER       # WARC to shards; datatrove's own blocks
    python scripts/bench/data.py memory             # resident memory by number of documents
    python scripts/bench/data.py near_duplicates ...  # scripts/bench/near_duplicates.py

trafilatura needs lxml_html_clean beside it. datatrove's WARC reader and address filter need
packages that are not installed here, so both sides of ``whole`` read with our reader and neither
filters addresses; its language filter downloads another model than ours, so neither side has one.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datatrove.data import Document

from pretrain.data.extract import content
from pretrain.data.job import prepare_data
from pretrain.data.readers import Reader, list_files
from pretrain.data.registry import STAGES, make_step
from pretrain.data.warc import write_warc

RULES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
WORD = re.compile(r"\w+")
# Manuals whose pages are the .txt file cut into pieces: package, pages, text.
GOLD = [
    *((f"debian-reference-{x}", "**/*.html", f"**/debian-reference.{x}.txt") for x in ("en", "de")),
    ("debian-reference-es", "**/*.html", "**/debian-reference.es.txt"),
    ("maint-guide", "**/*.html", "**/maint-guide.en.txt"),
    *((f"maint-guide-{x}", "**/*.html", f"**/maint-guide.{x}.txt") for x in ("de", "es")),
    *(
        ("installation-guide-amd64", f"**/{x}/*.html", f"**/install.{x}.txt")
        for x in ("en", "de", "es")
    ),
]
MEMORY = """
import resource, sys
from pretrain.data.job import prepare_data
prepare_data(input=sys.argv[1], output=sys.argv[2], workers=1,
             steps=["url", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb"])
own = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("extract", "filters", "whole"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("--pages", type=int, default=200)
        command.add_argument("--repeats", type=int, default=3)
    memory_ = commands.add_parser("memory")
    memory_.add_argument("--documents", type=int, nargs="*", default=[10_000, 50_000, 200_000])
    memory_.add_argument("--words", type=int, default=60, help="of a document")
    commands.add_parser("near_duplicates", add_help=False)
    options, rest = parser.parse_known_args()
    if options.command == "near_duplicates":
        script = Path(__file__).with_name("near_duplicates.py")
        sys.exit(subprocess.run([sys.executable, str(script), *rest], check=False).returncode)
    parser.parse_args()  # nothing unknown for the others
    print(json.dumps(globals()[options.command](options)))


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> dict[str, float]:
    """Median CPU seconds of each, and of the ratios of the pairs."""
    pairs = [(cpu(ours), cpu(theirs)) for _ in range(repeats)]
    return {
        "ours_s": round(statistics.median(o for o, _ in pairs), 3),
        "theirs_s": round(statistics.median(t for _, t in pairs), 3),
        "times_as_fast": round(statistics.median(t / o for o, t in pairs), 1),
    }


def cpu(run: Callable[[], object]) -> float:
    def now() -> float:
        usage = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(one.ru_utime + one.ru_stime for one in usage)

    start = now()
    run()
    return now() - start


def extract(options: argparse.Namespace) -> dict[str, Any]:
    import trafilatura

    def theirs(html: str) -> str:
        return str(trafilatura.extract(html, include_comments=False) or "")

    result: dict[str, Any] = {}
    every: list[str] = []
    for package, pages, text in GOLD:
        root = options.folder / package
        gold = words([next(root.glob(text)).read_text("utf-8", errors="replace")])
        html = [p.read_text("utf-8", errors="replace") for p in sorted(root.glob(pages))]
        every += html
        result[f"{package} {text.split('.')[-2]}"] = {
            "ours": f1(words(map(content, html)), gold),
            "theirs": f1(words(map(theirs, html)), gold),
        }
    for side in ("ours", "theirs"):
        result[f"mean_f1_{side}"] = round(
            statistics.mean(one[side] for key, one in result.items() if " " in key), 4
        )
    result["pages"] = len(every)
    return result | paired(
        lambda: [content(html) for html in every],
        lambda: [theirs(html) for html in every],
        options.repeats,
    )


def words(texts: Iterable[str]) -> Counter[str]:
    return Counter(word for text in texts for word in WORD.findall(text.lower()))


def f1(found: Counter[str], gold: Counter[str]) -> float:
    """Of bags of words: 2 * common / (found + gold)."""
    return round(2 * (found & gold).total() / (found.total() + gold.total()), 4)


def filters(options: argparse.Namespace) -> dict[str, Any]:
    texts = [content(html) for html in sample(options.folder, options.pages, "*en*")]
    steps = [make_step(name) for name in RULES]
    blocks = datatroves_filters()

    def verdicts(chain: Sequence[Callable[[Document], bool]]) -> list[bool]:
        documents = [Document(text=t, id="", metadata={"language": "en"}) for t in texts]
        return [all(keeps(document) for keeps in chain) for document in documents]

    ours = [lambda document, step=step: step.check(document) is None for step in steps]
    theirs = [lambda document, block=block: block.filter(document) is True for block in blocks]
    same = [a == b for a, b in zip(verdicts(ours), verdicts(theirs), strict=True)]
    result = {"documents": len(texts), "same_verdict": round(statistics.mean(same), 3)}
    return result | paired(lambda: verdicts(ours), lambda: verdicts(theirs), options.repeats)


def datatroves_filters() -> list[Any]:
    from datatrove.pipeline import filters as f

    return [
        f.GopherRepetitionFilter(),
        f.GopherQualityFilter(),
        f.C4QualityFilter(filter_no_terminal_punct=False),
        f.FineWebQualityFilter(),
    ]


def whole(options: argparse.Namespace) -> dict[str, Any]:
    deduplicated = "near_duplicates" in STAGES
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), iter(range(1000))
        html = sample(options.folder, options.pages, "*en*")
        pages = (
            (f"http://x.example/{i}", h.encode(), {"Content-Type": "text/html"})
            for i, h in enumerate(html)
        )
        (folder / "in").mkdir()
        write_warc(folder / "in" / "0.warc.gz", pages)

        def ours() -> None:
            prepare_data(
                input=folder / "in",
                output=folder / f"ours{next(runs)}",
                steps=["extract", *RULES],
                stages=["near_duplicates"] if deduplicated else [],
                workers=1,
            )

        def theirs() -> None:
            datatroves_pipeline(folder / "in", folder / f"theirs{next(runs)}", deduplicated)

        result = {"pages": len(html), "near_duplicates": deduplicated}
        return result | paired(ours, theirs, options.repeats)


def datatroves_pipeline(source: Path, out: Path, deduplicated: bool) -> None:
    """Trafilatura, its filters, its MinHash with its defaults; documents stay in memory."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.extractors import Trafilatura

    documents: Any = Reader(list_files(source), source).read()
    for block in [Trafilatura(timeout=10), *datatroves_filters()]:
        documents = block(documents)
    documents = list(documents)
    if deduplicated:
        mend_datatroves_hash()
        signatures = MinhashDedupSignature(output_folder=str(out / "s"))
        signatures.run(iter(documents), 0, 1)
        for bucket in range(signatures.config.num_buckets):
            MinhashDedupBuckets(str(out / "s"), str(out / "b")).run(None, bucket, 14)
        MinhashDedupCluster(str(out / "b"), str(out / "r")).run(None, 0, 1)
        documents = list(MinhashDedupFilter(str(out / "r")).run(iter(documents), 0, 1))
    out.mkdir(parents=True, exist_ok=True)
    with (out / "0.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": d.text, "id": d.id}) + "\n" for d in documents)


def mend_datatroves_hash() -> None:
    """Version 4 of xxhash takes no strings, which this version of datatrove hands it."""
    import xxhash
    from datatrove.utils.hashes import xxhash as theirs

    hashed = xxhash.xxh64_intdigest
    theirs.xxhash = SimpleNamespace(xxh64_intdigest=lambda text: hashed(text.encode()))


def sample(folder: Path, pages: int, packages: str = "*") -> list[str]:
    """Pages drawn at random, the same each time."""
    paths = sorted(p for root in folder.glob(packages) for p in root.rglob("*.html"))
    paths = random.Random(0).sample(paths, min(pages, len(paths)))
    return [path.read_text("utf-8", errors="replace") for path in paths]


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak MB of a job on so many documents, in a process of its own.

    That of the largest of its processes.
    """
    rng = random.Random(0)
    vocabulary = [
        f"{a}{b}" for a in ("the", "of", "and", "with", "river", "library") for b in ("", "s", "ly")
    ]
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        for number in options.documents:
            source = Path(name, f"{number}.jsonl")
            with source.open("w") as file:
                for i in range(number):
                    text = (
                        ". ".join(
                            " ".join(rng.choices(vocabulary, k=12))
                            for _ in range(options.words // 12)
                        )
                        + "."
                    )
                    file.write(json.dumps({"text": text, "id": str(i)}) + "\n")
            command = [sys.executable, "-c", MEMORY, str(source), str(Path(name, f"out{number}"))]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=900, check=True)
            peaks[str(number)] = int(ended.stdout.split()[-1])
            source.unlink()
    return {"peak_mb": peaks}


if __name__ == "__main__":
    main()
