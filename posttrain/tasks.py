"""Which task each prompt of each step gets: a function of the step alone.

Tasks are taken from the source in order. A prompt that leaves no room for an answer in the model's
window is an error, or is passed over when ``grpo.on_long_prompt = "drop"``; either way it is
counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from envs import Environment, Task
from posttrain.chat import Chat
from posttrain.config import GrpoConfig
from posttrain.errors import UsageError

# Prompts measured before anything is loaded, and for how long: some sources make tasks slowly. The
# rest are measured as they come.
_CHECKED_AHEAD = 2000
_CHECK_S = 10.0
_REFILLS_FROM = 1_000_000_000  # positions of the source that the main order never reaches
_REFILLS_PER_STEP = 1000


class TaskPlan:
    """Random access to the tasks of a step, with the long prompts found on the way."""

    def __init__(
        self, environment: Environment, chat: Chat, config: GrpoConfig, window: int
    ) -> None:
        self._source = environment.tasks
        self._chat = chat
        self._per_step = config.grpo.prompts_per_step
        self._drop = config.grpo.on_long_prompt == "drop"
        self._room = window - 1
        self._tasks: list[Task] = []
        self._cursor = 0
        self.dropped: list[str] = []
        self._ahead = min(_CHECKED_AHEAD, config.grpo.steps * self._per_step)

    def check(self, held_out: Sequence[Task]) -> None:
        """Measure the first and the held-out prompts. Raises UsageError naming the long ones."""
        long = [task for task in held_out if self._too_long(task)]
        n, deadline = 0, time.monotonic() + _CHECK_S
        while not self._drop and n < self._ahead and time.monotonic() < deadline:
            task = self._source.train(n)
            long += [task] if self._too_long(task) else []
            n += 1
        if long:
            names = ", ".join(task.task_id for task in long[:3])
            raise UsageError(
                f"{len(long)} of {n + len(held_out)} prompts fill the model's window of "
                f"{self._room + 1} tokens and leave no room for an answer, the first: {names}. "
                'Shorten them, raise rollout.max_model_len, or set grpo.on_long_prompt="drop"'
            )
        self._fill(min(self._ahead, self._per_step))

    def step(self, step: int) -> list[Task]:
        """The tasks of one step, [P]."""
        start = step * self._per_step
        self._fill(start + self._per_step)
        return self._tasks[start : start + self._per_step]

    def refill(self, step: int, first: int, n: int) -> list[Task]:
        """``n`` more tasks for a step that has used ``first`` of its refills, [n].

        They come from far along the source, so that the main order of tasks stays what it is.
        Prompts too long are passed over. Raises UsageError when all are.
        """
        start = _REFILLS_FROM + step * _REFILLS_PER_STEP
        found: list[Task] = []
        for position in range(start, start + _REFILLS_PER_STEP):
            task = self._source.train(position)
            if not self._too_long(task):
                found.append(task)
            if len(found) == first + n:
                return found[first:]
        raise UsageError(f"step {step}: no refill left whose prompt leaves room for an answer")

    def _fill(self, n: int) -> None:
        passed_over = 0
        while len(self._tasks) < n:
            task = self._source.train(self._cursor)
            self._cursor += 1
            if not self._too_long(task):
                self._tasks.append(task)
                passed_over = 0
                continue
            if not self._drop:
                raise UsageError(f"task {task.task_id}: the prompt fills the model's window")
            self.dropped.append(task.task_id)
            passed_over += 1
            if passed_over > 1000:
                raise UsageError(
                    "1000 prompts in a row fill the model's window: nothing to train on"
                )

    def _too_long(self, task: Task) -> bool:
        return len(self._chat.prompt_ids(task.messages)) > self._room
