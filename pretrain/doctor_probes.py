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

_VOCABULARY, _ROW, _STEPS = 384, 64, 30


@dataclass(frozen=True, slots=True)
class Probe:
    """A stage: what tries it, and the distributions and earlier stages it cannot do without."""

    name: str
    try_it: Callable[[Path], str]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def documents(folder: Path) -> str:
    """Documents in the form that stages pass on."""
    (folder / "documents").mkdir()
    rows = [
        {
            "text": f"Page {i}. {i} and {i + 3} make {2 * i + 3}.\n" * 20,
            "id": str(i),
            "metadata": {},
        }
        for i in range(60)
    ]
    with gzip.open(folder / "documents" / "00000.jsonl.gz", "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return f"{len(rows)} documents"


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
    """A model that learns, and a checkpoint folder that opens by itself."""
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pretrain.model import ModelSettings, new_model
    from pretrain.packing import Rows
    from pretrain.train import TrainSettings, train

    stream = _stream(folder)
    batches = [stream.batch(step) for step in range(stream.steps)]
    rows = Rows(*(np.concatenate([getattr(b, name) for b in batches]) for name in _FIELDS))
    made = AutoTokenizer.from_pretrained(folder / "tokenizer")
    shape = ModelSettings(
        hidden_size=64, layers=2, mlp_size=128, heads=2, head_dim=32, max_length=_ROW
    )
    model = new_model(shape, made)
    settings = TrainSettings(
        steps=_STEPS,
        rows_per_step=4,
        row_tokens=_ROW,
        learning_rate=5e-3,
        warmup_steps=5,
        threads=1,
    )
    losses = train(model, rows, settings).losses
    _expect(losses[-1] < losses[0] - 1, f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}")
    model.save_pretrained(folder / "model")
    again = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    _expect(
        all(bool((value == again[name]).all()) for name, value in model.state_dict().items()),
        "the checkpoint does not hold the weights that were trained",
    )
    return f"{_STEPS} steps, loss {losses[0]:.2f} to {losses[-1]:.2f}; the checkpoint is the model"


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
    Probe("documents", documents),
    Probe("tokenizer", tokenizer, needs=("tokenizers", "transformers"), after=("documents",)),
    Probe("shards", shards, after=("documents", "tokenizer")),
    Probe("training", training, needs=("torch", "transformers"), after=("shards",)),
    Probe("plan", planning, needs=("scipy",)),
)
_FIELDS = ("ids", "labels", "positions")


def _texts(folder: Path) -> list[str]:
    texts = []
    for path in sorted((folder / "documents").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


def _stream(folder: Path) -> Any:
    from pretrain.data.stream import Stream, StreamSettings

    phase = {"tokens": _STEPS * 4 * _ROW, "rows": 4, "length": _ROW}
    settings = StreamSettings(shards=(str(folder / "shards"),), phases=(phase,))
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
