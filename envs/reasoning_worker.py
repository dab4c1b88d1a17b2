"""The program of a reasoning-gym worker process, run by ``envs.reasoning_pool``.

Imports no project code.

Why another process: six datasets iterate over sets of strings, so that their items depend on
PYTHONHASHSEED; some draw from global random state; nine scorers hand model text to ``eval`` or
sympy, and some can hang. Here the hash seed is fixed, the global states are seeded for each item,
and a job that outlives its deadline ends the process (SIGALRM, default action), whoever waits.

Frames on stdin and stdout: 4 bytes of length, then a pickle. A request is
``(deadline_s, method, arguments)``, a reply ``("ok", result)`` or ``(kind, message)``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import traceback
from collections import OrderedDict
from typing import Any, BinaryIO

BLOCK = 500  # items of one dataset instance; some datasets lay out `size` items when made
KEEP_DATASETS = 16
MEMORY_BYTES = 6 << 30  # address space; a memory bomb ends in MemoryError here, not on the machine

# Where the metadata of a dataset whose items have no single right answer keeps an example of one.
EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")


class Refused(Exception):
    """Bad arguments; the message is for the user."""


class Datasets:
    """Makes reasoning-gym datasets and keeps the last few."""

    def __init__(self) -> None:
        import reasoning_gym  # noqa: F401  (fills the registry)
        from reasoning_gym.factory import DATASETS

        self._registry = DATASETS
        self._made: OrderedDict[tuple[str, str, int], Any] = OrderedDict()

    def describe(self) -> dict[str, list[str]]:
        """Every dataset and the arguments it accepts."""
        hidden = ("seed", "size")
        return {
            name: [f.name for f in dataclasses.fields(config) if f.name not in hidden]
            for name, (_, config) in self._registry.items()
        }

    def check(self, name: str, config: dict[str, Any]) -> None:
        """Raises Refused when the dataset cannot be made with these values."""
        try:
            self._make(name, config, 0)
        except Exception as error:  # boundary: validation in reasoning-gym is by assert, mostly
            raise Refused(str(error) or repr(error)) from error

    def item(self, name: str, config: dict[str, Any], stream: str, position: int) -> Any:
        """(question, answer, metadata) at a position, or None where the dataset has none."""
        block, offset = divmod(position, BLOCK)
        seed = _seed(f"{stream}:{block}")
        dataset = self._get(name, config, seed)
        _seed_globals(_seed(f"{stream}:{position}"))
        try:
            item = dataset[offset]
        except IndexError:
            # word_ladder shortens itself when it finds no pair: forget that, or the items after
            # this one would depend on the order of access.
            self._made.pop((name, repr(config), seed), None)
            return None
        answer = item["answer"] if item["answer"] is not None else _example(item["metadata"])
        if isinstance(answer, str) and not answer.strip():
            return None  # an empty answer cannot be told from no answer
        return item["question"], answer, item["metadata"]

    def score(
        self, name: str, config: dict[str, Any], answer: str, entry: dict[str, Any]
    ) -> float | None:
        """The dataset's own scorer on a final answer; None when it cannot read the answer.

        That is: when it raises on this answer, and not on the gold one (or an empty one, where
        there is no gold). What raises on both is broken, and raises here.
        """
        dataset = self._get(name, config, 0)
        _seed_globals(0)
        try:
            return float(dataset.score_answer(answer, entry=entry))
        except Exception:  # noqa: BLE001  boundary: model text in a third-party scorer
            dataset.score_answer(entry["answer"] or "", entry=entry)
            return None

    def _get(self, name: str, config: dict[str, Any], seed: int) -> Any:
        key = (name, repr(config), seed)
        if key not in self._made:
            self._made[key] = self._make(name, config, seed)
            while len(self._made) > KEEP_DATASETS:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def _make(self, name: str, config: dict[str, Any], seed: int) -> Any:
        from reasoning_gym import create_dataset
        from reasoning_gym.composite import DatasetSpec

        config = dict(config)
        if name == "composite" and "datasets" in config:
            config["datasets"] = [DatasetSpec(**_spec(spec)) for spec in config["datasets"]]
        _seed_globals(seed)
        return create_dataset(name, **config, seed=seed, size=BLOCK)


def _spec(spec: dict[str, Any]) -> dict[str, Any]:
    return {"weight": 1.0, "config": {}, **spec}


def _example(metadata: dict[str, Any]) -> str | None:
    for key in EXAMPLES:
        if key in metadata:
            value = metadata[key]
            return value if isinstance(value, str) else json.dumps(value)
    return None


def _seed(text: str) -> int:
    """31 bits, so that seed + offset stays below numpy's limit of 2**32."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def _seed_globals(seed: int) -> None:
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def _read(stream: BinaryIO) -> Any:
    """The next frame; None at the end of input, when the parent is gone."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    (length,) = struct.unpack(">I", header)
    return pickle.loads(stream.read(length))


def _answer(datasets: Datasets, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "ok", getattr(datasets, method)(*arguments)
    except Refused as refused:
        return "refused", str(refused)
    except Exception:  # noqa: BLE001  boundary: third-party generator or scorer
        return "raised", traceback.format_exc()[-2000:]


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # some datasets print
    datasets = Datasets()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (request := _read(sys.stdin.buffer)) is not None:
        deadline_s, method, arguments = request
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        reply = pickle.dumps(_answer(datasets, method, arguments))
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(struct.pack(">I", len(reply)) + reply)
        replies.flush()


if __name__ == "__main__":
    main()
