"""An endless stream of generated tasks, with random access and a held-out share.

The index-th training task is found without looking at any other: candidates for it are drawn from
numbered attempts (stream ``train:<seed>:<attempt>``, position ``index``) until one is not held
out, 1.1 attempts on average. So a resume needs one number, and order does not matter. The held-out
tasks are those of one further stream, the same for every seed, so that runs can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from envs.protocol import Task
from envs.splitting import PERCENT, held_out, question_of
from rewards import UsageError

MAX_ATTEMPTS = 200  # for one training task; each fails by chance with probability percent / 100

MakeTask = Callable[[str, int], Task | None]


class GeneratedTasks:
    """A TaskSource over ``make(stream, position)``, which must depend on these two alone.

    ``make`` returns None where it has no task for a position. ``seed`` chooses the training stream.
    """

    def __init__(self, make: MakeTask, *, seed: int = 0, held_out_percent: int = PERCENT) -> None:
        if not 0 <= held_out_percent < 100:
            raise UsageError(f"held_out_percent must be from 0 to 99, got {held_out_percent}")
        self._make = make
        self._seed = seed
        self._percent = held_out_percent
        self._held_out: dict[str, Task] = {}  # by question, in order
        self._next_candidate = 0

    def train(self, index: int) -> Task:
        """The index-th training task. Raises UsageError when nearly everything is held out."""
        if index < 0:
            raise ValueError(f"index must not be negative, got {index}")
        for attempt in range(MAX_ATTEMPTS):
            task = self._make(f"train:{self._seed}:{attempt}", index)
            if task is not None and not held_out(question_of(task.messages), self._percent):
                return task
        raise UsageError(
            f"no training task at {index}: {MAX_ATTEMPTS} candidates in a row were held out or "
            "could not be made; these arguments leave too few different questions"
        )

    def held_out(self, n: int) -> list[Task]:
        """The first n held-out tasks, with distinct questions.

        Raises UsageError when fewer turn up among ``2000 + 50 * n`` candidates.
        """
        if n and not self._percent:
            raise UsageError("nothing is held out: held_out_percent is 0")
        limit = 2000 + 50 * n
        while len(self._held_out) < n and self._next_candidate < limit:
            task = self._make("held_out", self._next_candidate)
            self._next_candidate += 1
            if task is not None and held_out(question_of(task.messages), self._percent):
                self._held_out.setdefault(question_of(task.messages), task)
        if len(self._held_out) < n:
            raise UsageError(
                f"only {len(self._held_out)} distinct held-out tasks among {limit} candidates, "
                f"{n} asked for: ask for fewer, or make the tasks more varied"
            )
        return list(self._held_out.values())[:n]


def generated(
    make: Callable[[random.Random], Task | None], *, seed: int = 0, held_out_percent: int = PERCENT
) -> GeneratedTasks:
    """Tasks drawn by ``make(rng)``, where every random choice must come from ``rng``."""

    def at(stream: str, position: int) -> Task | None:
        return make(random.Random(f"{stream}:{position}"))

    return GeneratedTasks(at, seed=seed, held_out_percent=held_out_percent)
