"""Speed and quality of the data pipeline beside its peers: paired, in one run, with one table.

Each repetition runs both sides one after the other on the same documents. Seconds are CPU seconds
of the process and its children, since wall time is another program's business; the table has the
medians, and the median ratio of the pairs with its range.

    python scripts/bench/data.py [all] [FOLDER]     # all of these, about 20 minutes; --quick: two
    python scripts/bench/data.py extract FOLDER     # F1 against .txt twins; trafilatura
    python scripts/bench/data.py filters FOLDER     # Gopher, C4 and FineWeb rules; datatrove's
    python scripts/bench/data.py whole FOLDER       # WARC to token shards; datatrove's own blocks
    python scripts/bench/data.py near_duplicates    # near_duplicates.py speed; datatrove's MinHash
    python scripts/bench/data.py memory             # resident memory by number of documents

FOLDER is what ``scripts/fetch_debian_corpus.sh`` fetched (runs/debian). trafilatura needs
lxml_html_clean beside it. datatrove's WARC reader and address filter need packages that are not
installed here, so both sides of ``whole`` read with our reader and neither filters addresses; its
language filter downloads another model than ours, so neither side has one. Both tokenise with the
same tokenizer, learnt from the pages beforehand; datatrove's documents stay in memory between its
blocks.
"""

from __future__ import annotations

import argparse
import json
import os
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
from pretrain.data.folders import write_documents
from pretrain.data.job import prepare_data
from pretrain.data.readers import Reader, list_files
from pretrain.data.registry import make_step
from pretrain.data.shards import Shards
from pretrain.data.warc import write_warc
from pretrain.tokenizer_sample import SampleSettings
from pretrain.tokenizer_sample import sample as sample_documents
from pretrain.tokenizer_training import TokenizerSettings, save_trained

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
COLUMNS = ("number", "ours_s", "theirs_s", "times_as_fast", "range", "manuals")
PARTS = ("extract", "filters", "whole", "near_duplicates", "memory")
# A job's steps and stages; what a page costs to extract depends on the page, so text comes in.
MEMORY = """
import resource, sys
from pretrain.data.job import prepare_data
job = prepare_data(
    input=sys.argv[1], output=sys.argv[2], workers=1,
    steps=["url", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb"],
    stages=[{"name": name, "memory_mb": 8} for name in ("exact_duplicates", "near_duplicates")])
own = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024,
      job.counts[-1]["in"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="all", choices=("all", *PARTS))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/debian"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pages", type=int, default=500, help="of filters and whole")
    parser.add_argument("--documents", type=int, default=20_000, help="of near_duplicates")
    parser.add_argument(
        "--growing", type=int, nargs="+", default=[10_000, 50_000, 200_000], help="of memory"
    )
    parser.add_argument("--words", type=int, default=60, help="of a document of memory")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.pages, options.documents = 1, 40, 1000
        options.growing = [1000, 2000]
    if options.what not in ("near_duplicates", "memory") and not options.folder.is_dir():
        parser.error(f"{options.folder} is not there: scripts/fetch_debian_corpus.sh fetches it")
    loads = [os.getloadavg()[0]]
    results = {}
    for part in PARTS if options.what == "all" else (options.what,):
        results[part] = globals()[part](options)
        print(json.dumps({part: results[part]}), flush=True)
    loads.append(os.getloadavg()[0])
    print(table(results, options.repeats))
    print(
        f"load {loads[0]:.1f} at the start and {loads[1]:.1f} at the end, of {os.cpu_count()} cores"
    )


def table(results: dict[str, Any], repeats: int) -> str:
    """A row for each pair; below it what else was found."""
    pairs = {part: one for part, one in results.items() if "ours_s" in one}
    pairs |= {f"near, {peer}": one for peer, one in results.get("near_duplicates", {}).items()}
    head = f"{'medians of ' + str(repeats):<24}{'number':>8}{'ours, s':>10}{'peer, s':>10}  ratio"
    lines = [head] if pairs else []
    lines += [
        f"{part:<24}{one['number']:>8}{one['ours_s']:>10}{one['theirs_s']:>10}"
        f"  {one['times_as_fast']} ({one['range']})"
        for part, one in pairs.items()
    ]
    for part, one in (pairs | {"memory": results.get("memory", {})}).items():
        rest = [f"{key} {value}" for key, value in one.items() if key not in COLUMNS]
        lines += [f"{part}: {', '.join(rest)}"] if rest else []
    return "\n".join(lines)


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int, number: int
) -> dict[str, Any]:
    """Of ``number`` documents: median CPU seconds of each, and of the ratios of the pairs."""
    return medians([(cpu(ours), cpu(theirs)) for _ in range(repeats)], number)


def medians(pairs: list[tuple[float, float]], number: int) -> dict[str, Any]:
    ratios = [theirs / ours for ours, theirs in pairs]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "number": number,
        "ours_s": round(ours, 3),
        "theirs_s": round(theirs, 3),
        "times_as_fast": round(statistics.median(ratios), 1),
        "range": f"{min(ratios):.1f} to {max(ratios):.1f}",
        "ours_per_s": round(number / ours),
        "theirs_per_s": round(number / theirs),
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

    manuals: dict[str, dict[str, float]] = {}
    every: list[str] = []
    for package, pages, text in GOLD:
        root = options.folder / package
        gold = words([next(root.glob(text)).read_text("utf-8", errors="replace")])
        html = [p.read_text("utf-8", errors="replace") for p in sorted(root.glob(pages))]
        every += html
        manuals[f"{package} {text.split('.')[-2]}"] = {
            "ours": f1(words(map(content, html)), gold),
            "theirs": f1(words(map(theirs, html)), gold),
        }
    result: dict[str, Any] = {
        f"mean_f1_{side}": round(statistics.mean(one[side] for one in manuals.values()), 4)
        for side in ("ours", "theirs")
    }
    result["manuals"] = manuals
    return result | paired(
        lambda: [content(html) for html in every],
        lambda: [theirs(html) for html in every],
        options.repeats,
        len(every),
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
    result = {"same_verdict": round(statistics.mean(same), 3)}
    return result | paired(
        lambda: verdicts(ours), lambda: verdicts(theirs), options.repeats, len(texts)
    )


def datatroves_filters() -> list[Any]:
    from datatrove.pipeline import filters as f

    return [
        f.GopherRepetitionFilter(),
        f.GopherQualityFilter(),
        f.C4QualityFilter(filter_no_terminal_punct=False),
        f.FineWebQualityFilter(),
    ]


def whole(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), iter(range(1000))
        html = sample(options.folder, options.pages, "*en*")
        pages = (
            (f"http://x.example/{i}", h.encode(), {"Content-Type": "text/html"})
            for i, h in enumerate(html)
        )
        (folder / "in").mkdir()
        write_warc(folder / "in" / "0.warc.gz", pages)
        tokenizer = learn_tokenizer(sample(options.folder, 500, "*en*"), folder)
        tokens = {}

        def ours() -> None:
            job = prepare_data(
                input=folder / "in",
                output=folder / f"ours{next(runs)}",
                steps=["extract", *RULES],
                stages=["near_duplicates", {"name": "shards", "tokenizer": str(tokenizer)}],
                workers=1,
            )
            sources = Shards.open(job.documents, verify=False).manifest["sources"]
            tokens["ours_tokens"] = sum(source["tokens"] for source in sources.values())

        def theirs() -> None:
            out = folder / f"theirs{next(runs)}"
            tokens["theirs_tokens"] = datatroves_pipeline(folder / "in", out, tokenizer)

        return paired(ours, theirs, options.repeats, len(html)) | tokens


def learn_tokenizer(html: list[str], folder: Path) -> Path:
    rows = [{"text": content(page), "id": str(i), "metadata": {}} for i, page in enumerate(html)]
    write_documents(folder / "documents", rows)
    documents = SampleSettings(documents=(str(folder / "documents"),))
    settings = TokenizerSettings(vocab_size=4096)
    save_trained(sample_documents(documents), settings, folder / "tokenizer")
    return folder / "tokenizer"


def datatroves_pipeline(source: Path, out: Path, tokenizer: Path) -> int:
    """Trafilatura, its filters, its MinHash with its defaults, its tokenizer; the tokens."""
    from datatrove.pipeline import dedup
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.tokens import DocumentTokenizer

    documents: Any = Reader(list_files(source), source).read()
    for block in [Trafilatura(timeout=10), *datatroves_filters()]:
        documents = block(documents)
    documents = list(documents)
    mend_datatroves_hash()
    signatures = dedup.MinhashDedupSignature(output_folder=str(out / "s"))
    signatures.run(iter(documents), 0, 1)
    for bucket in range(signatures.config.num_buckets):
        dedup.MinhashDedupBuckets(str(out / "s"), str(out / "b")).run(None, bucket, 14)
    dedup.MinhashDedupCluster(str(out / "b"), str(out / "r")).run(None, 0, 1)
    kept = dedup.MinhashDedupFilter(str(out / "r")).run(iter(documents), 0, 1)
    DocumentTokenizer(
        str(out / "tokens"),
        str(tokenizer / "tokenizer.json"),
        eos_token="<|endoftext|>",
        shuffle_documents=False,  # nor do we
        save_final_metadata=False,
    ).run(kept, 0, 1)
    return sum(path.stat().st_size // 2 for path in (out / "tokens").glob("*.ds"))  # uint16


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


def near_duplicates(options: argparse.Namespace) -> dict[str, Any]:
    """``near_duplicates.py speed``: each of its peers beside ours."""
    script = Path(__file__).with_name("near_duplicates.py")
    sizes = ["--documents", str(options.documents), "--repeats", str(options.repeats)]
    ended = subprocess.run(
        [sys.executable, str(script), "speed", *sizes],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    runs = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    first, result = runs[0], {}
    for peer in ("datatrove", "datatrove_split"):
        pairs = [(run["ours"]["cpu_s"], run[peer]["cpu_s"]) for run in runs]
        result[peer] = medians(pairs, first["documents"])
        for key in ("recall", "false"):
            result[peer] |= {f"{key}_ours": first["ours"][key], f"{key}_theirs": first[peer][key]}
    return result


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak MB of a job on so many documents, in a process of its own.

    That of the largest of its processes.
    """
    rng = random.Random(0)
    vocabulary = [
        f"{a}{b}" for a in ("the", "of", "and", "with", "river", "library") for b in ("", "s", "ly")
    ]
    peaks, compared = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for number in options.growing:
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
            peaks[number], compared[number] = map(int, ended.stdout.split()[-2:])
            source.unlink()
    return {"peak_mb": peaks, "reached near_duplicates": compared}


if __name__ == "__main__":
    main()
