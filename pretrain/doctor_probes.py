"""The doctor's passes through the stages: the real ones, on a few generated pages, in seconds.

A probe is a function of the folder that all of them share; it returns what it saw, and raises what
went wrong. ``PROBES`` is the list to add a stage to. Each runs as a process of its own, with an
audit hook that refuses every connection and look-up beyond this machine: a stage that wants a
network fails here, by name.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

_PAGES, _VOCABULARY, _ROW, _STEPS = 60, 384, 64, 30
_PHASE = {"tokens": _STEPS * 4 * _ROW, "rows": 4, "length": _ROW}


@dataclass(frozen=True, slots=True)
class Probe:
    """A stage: what tries it, and the distributions and earlier stages it cannot do without."""

    name: str
    try_it: Callable[[Path], str]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def data(folder: Path) -> str:
    """Archived pages to clean documents: menus go, the language is told, copies are found."""
    from pretrain.data.job import prepare_data
    from pretrain.data.warc import write_warc

    pages = [_page(i) for i in range(_PAGES)]
    pages.append(pages[1].replace("</main>", "<p>This is a mirror.</p></main>"))
    (folder / "pages").mkdir()
    (folder / "pages" / "copy.html").write_text(pages[0])
    html = {"Content-Type": "text/html; charset=utf-8"}
    archived = ((f"http://pages.example/{i}", page.encode(), html) for i, page in enumerate(pages))
    write_warc(folder / "pages" / "0.warc.gz", archived)
    result = prepare_data(
        input=folder / "pages",
        output=folder / "data",
        steps=("extract", "language"),
        stages=("exact_duplicates", "near_duplicates"),
        tasks=1,
        workers=1,
    )
    (folder / "documents").symlink_to(result.documents)
    texts = _texts(folder)
    copies = [stage["dropped"] for stage in result.counts[1:]]
    _expect(copies == [{"duplicate": 1}, {"near_duplicate": 1}], f"of two copies went {copies}")
    _expect(len(texts) == _PAGES, f"{len(texts)} of {_PAGES} documents")
    _expect(not any("Home" in text for text in texts), "a page's menu is still in its text")
    return (
        f"{_PAGES + 2} pages to {len(texts)} documents: menus gone, a copy and a near one dropped"
    )


def _page(i: int) -> str:
    body = "".join(
        f"<p>Page {i} has {n} lines on the sum of {i} and {n}, which is {i + n}.</p>"
        for n in range(i % 7, i % 7 + 12)
    )
    return f"<html><body><nav><a href=x>Home</a></nav><main>{body}</main></body></html>"


def tokenizer(folder: Path) -> str:
    """Merges that are learnt, and a text that survives the round trip."""
    from pretrain.tokenizer import train_tokenizer

    made = train_tokenizer(_texts(folder), vocab_size=_VOCABULARY, max_length=_ROW)
    text = "Page 7. 7 and 10 make 17.\tГ, 字"
    again = made.decode(made(text)["input_ids"])
    _expect(again == text, f"{text!r} came back as {again!r}")
    made.save_pretrained(folder / "tokenizer")
    return f"{len(made)} tokens, a text survives the round trip"


def shards(folder: Path) -> str:
    """Documents to shards, and a stream whose rows depend on the step alone."""
    from pretrain.data.shard_writer import shards_stage

    written = shards_stage(
        folder / "documents", folder / "shards", {"tokenizer": str(folder / "tokenizer")}
    )
    stream = _stream(folder)
    first, again = stream.batch(3), _stream(folder).batch(3)
    _expect(bool((first.ids == again.ids).all()), "a step read twice differs")
    tokens = sum(source["tokens"] for source in written.manifest["sources"].values())
    return f"{tokens:,} tokens, step 3 read twice is the same"


def training(folder: Path) -> str:
    """DeepSpeed trains a model that learns; what it leaves is an ordinary folder."""
    from pretrain.training import train_model

    run = train_model(
        {
            "out": str(folder / "run"),
            "data": {"shards": [str(folder / "shards")], "phases": [_PHASE]},
            "shape": {
                **{"hidden_size": 64, "layers": 2, "mlp_size": 128, "heads": 2, "kv_heads": 1},
                **{"head_dim": 32, "max_length": _ROW},
            },
            "optimizer": {"rate": 5e-3},
            "schedule": {"warmup": 5},
            "dtype": "float32",
            "threads": 1,
            "report": {"peak_tflops": 1.0},
        }
    )
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    _expect(losses[-1] < losses[0] - 1, f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}")
    _expect((run / "model.safetensors").is_file(), f"no weights in {run}")
    return f"{_STEPS} steps, loss {losses[0]:.2f} to {losses[-1]:.2f}"


def importing(folder: Path) -> str:
    """The trained folder as a base: checks, a smoke generation, and the copy read back."""
    from pretrain.importing import import_checkpoint

    report = import_checkpoint(folder / "run" / "final", folder / "base")
    return f"{len(report.findings)} checks, and the copy gives the same logits"


def longer(folder: Path) -> str:
    """YaRN in the config of the imported base, which opens at the new length."""
    from transformers import AutoConfig

    from pretrain.context.extend import extend

    extend(folder / "base", folder / "long", length=4 * _ROW)
    length = AutoConfig.from_pretrained(folder / "long").max_position_embeddings
    _expect(length == 4 * _ROW, f"the config says {length} tokens")
    return f"from {_ROW} to {length} tokens"


def planning(folder: Path) -> str:
    """A law that is found again in the runs that were made from it."""
    from pretrain.planning.fit import fit_law
    from pretrain.planning.law import LAWS
    from pretrain.planning.runs import Run

    law = LAWS["besiroglu"]
    runs = [Run(n, d, law.loss(n, d)) for n in (1e8, 4e8, 2e9) for d in (2e9, 1e10, 5e10)]
    found = fit_law(runs, resamples=0).law
    _expect(abs(found.alpha - law.alpha) < 1e-3, f"planted alpha {law.alpha}, found {found.alpha}")
    return f"a planted law of losses is found again: alpha {found.alpha:.4f}"


PROBES = (
    Probe("data", data, needs=("datatrove", "fastwarc", "resiliparse", "xxhash", "rensa")),
    Probe("tokenizer", tokenizer, needs=("tokenizers", "transformers"), after=("data",)),
    Probe("shards", shards, after=("data", "tokenizer")),
    Probe("train", training, needs=("torch", "transformers", "deepspeed"), after=("shards",)),
    Probe("import", importing, needs=("torch", "transformers"), after=("train",)),
    Probe("extend", longer, after=("import",)),
    Probe("plan", planning, needs=("scipy",)),
)


def _texts(folder: Path) -> list[str]:
    texts = []
    for path in sorted((folder / "documents").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


def _stream(folder: Path) -> Any:
    from pretrain.data.stream import Stream, StreamSettings

    settings = StreamSettings(shards=(str(folder / "shards"),), phases=(_PHASE,))
    return Stream(settings, seed=0, tokenizer=str(folder / "tokenizer"))


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise RuntimeError(otherwise)


def refuse_network() -> None:
    """From now on this process reaches nothing but itself and its machine."""

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else ""
        elif event == "socket.getaddrinfo":
            host = arguments[0] or ""
        else:
            return
        if not _is_here(host.decode() if isinstance(host, bytes) else host):
            raise PermissionError(f"this stage wants a network: it asked for {host}")

    sys.addaudithook(guard)


def _is_here(host: str) -> bool:
    import socket

    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        return ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    wanted, shared = sys.argv[1:]
    refuse_network()
    print(next(probe for probe in PROBES if probe.name == wanted).try_it(Path(shared)))
