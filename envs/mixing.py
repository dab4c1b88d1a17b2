"""Several task sources as one stream, and a stream that keeps to what can be learnt from.

``Mixture`` decides which source the index-th task comes from: each block of ``BLOCK`` tasks holds
every source in proportion to its weight, shuffled by (seed, block) alone. So a source's own
position follows from the index, and a resume needs one number.

``Curriculum`` leaves out tasks that a policy always or never solves: a group of equal scores has no
advantage and teaches nothing. Pass rates are those of a run's rollouts (``pass_rates``); the choice
is made once, between runs, so that the stream stays a function of its index. Held-out tasks are
never chosen from: what is measured does not move.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from envs.protocol import Task, TaskSource
from envs.splitting import question_of
from rewards import UsageError

BLOCK = 1000
MAX_SKIPPED = 10_000  # tasks that a curriculum leaves out before it gives up
STRIDE = 104_729  # a prime: where neighbours are left out, their substitutes are not one task


class Mixture:
    """A TaskSource over ``sources``, each with a positive weight."""

    def __init__(self, sources: Sequence[tuple[TaskSource, float]], *, seed: int = 0) -> None:
        if not sources:
            raise UsageError("a mixture needs at least one source")
        for number, (_, weight) in enumerate(sources):
            if not 0 < weight < float("inf"):
                raise UsageError(f"source {number} of a mixture: its weight must be > 0: {weight}")
        self._sources = [source for source, _ in sources]
        self._shares = _shares([weight for _, weight in sources])
        self._seed = seed
        self._block = lru_cache(maxsize=2)(self._shuffled)

    def train(self, index: int) -> Task:
        """The index-th training task, of the source whose turn it is."""
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        number, position = divmod(index, BLOCK)
        which, nth = self._block(number)[position]
        return self._sources[which].train(number * self._shares[which] + nth)

    def held_out(self, n: int) -> list[Task]:
        """The first n held-out tasks with distinct questions, from the sources in turn.

        Raises UsageError when a source has fewer than its part.
        """
        parts = [n // len(self._sources)] * len(self._sources)
        for extra in range(n % len(self._sources)):
            parts[extra] += 1
        lists = [s.held_out(part) for s, part in zip(self._sources, parts, strict=True) if part]
        mixed = [
            task for turn in range(max(parts)) for some in lists for task in some[turn : turn + 1]
        ]
        if len({question_of(task.messages) for task in mixed}) < n:
            raise UsageError("two sources of a mixture hold out the same question")
        return mixed

    def _shuffled(self, number: int) -> list[tuple[int, int]]:
        """(source, how many of it went before in this block), for each place of a block."""
        order = [which for which, share in enumerate(self._shares) for _ in range(share)]
        random.Random(f"{self._seed}:{number}").shuffle(order)
        seen = [0] * len(self._shares)
        places = []
        for which in order:
            places.append((which, seen[which]))
            seen[which] += 1
        return places


def _shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to ``weights`` whose sum is BLOCK; largest remainders go up."""
    total = sum(weights)
    exact = [weight / total * BLOCK for weight in weights]
    shares = [int(one) for one in exact]
    by_rest = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for which in by_rest[: BLOCK - sum(shares)]:
        shares[which] += 1
    if 0 in shares:
        raise UsageError(f"a weight of less than 1 in {BLOCK} gets no task: {list(weights)}")
    return shares


def pass_rates(scores: Iterable[tuple[str, float | None]]) -> dict[str, tuple[int, int]]:
    """(task_id, score) of rollouts to {task_id: (solved, judged)}; solved is a score >= 1.

    A score of None could not be judged and does not count.
    """
    rates: dict[str, tuple[int, int]] = {}
    for task_id, score in scores:
        if score is not None:
            solved, judged = rates.get(task_id, (0, 0))
            rates[task_id] = (solved + (score >= 1.0), judged + 1)
    return rates


def read_rates(path: str | Path) -> dict[str, tuple[int, int]]:
    """What ``write_rates`` wrote. Raises UsageError."""
    try:
        found = json.loads(Path(path).read_text())
        return {str(task_id): (int(solved), int(n)) for task_id, (solved, n) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no file of pass rates: {error}") from error


def write_rates(rates: Mapping[str, tuple[int, int]], path: str | Path) -> None:
    """Pass rates as JSON, ``{"task_id": [solved, judged]}``."""
    Path(path).write_text(json.dumps({name: list(rate) for name, rate in rates.items()}))


class Curriculum:
    """``tasks`` without those that were always or never solved in ``least`` attempts or more.

    A task that was tried less often stays: nothing is known of it. Training tasks are looked up at
    the same index, or the first of index + STRIDE * k that stays, so the stream has random access.
    """

    def __init__(
        self, tasks: TaskSource, rates: Mapping[str, tuple[int, int]], *, least: int = 4
    ) -> None:
        if least < 1:
            raise UsageError(f"least must be at least 1, got {least}")
        self._tasks = tasks
        self._out = {
            task_id
            for task_id, (solved, judged) in rates.items()
            if judged >= least and solved in (0, judged)
        }

    def train(self, index: int) -> Task:
        """Raises UsageError when next to nothing stays."""
        for further in range(MAX_SKIPPED):
            task = self._tasks.train(index + further * STRIDE)
            if task.task_id not in self._out:
                return task
        raise UsageError(
            f"{MAX_SKIPPED} tasks in a row are always or never solved: measure them anew"
        )

    def held_out(self, n: int) -> list[Task]:
        """Those of the source, all of them."""
        return self._tasks.held_out(n)
