"""A multi-turn environment over any other: a wrong first answer gets one more try.

The first answer is judged by the inner environment. Right: the episode is over. Otherwise the model
reads that it was wrong and answers again; being right then is worth ``second_value``. Written as an
example of an Env with state; ``inner`` must be an environment of one turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from envs.loading import load, register
from envs.protocol import Env, Environment, Message, Step, Task
from envs.single_turn import Episodes, settled, user
from rewards import Outcome, Score, UsageError


class SecondTry:
    """One episode of at most two model turns."""

    def __init__(self, first: Env, second: Env, second_value: float, prompt: str) -> None:
        self._tries = [first, second]
        self._second_value = second_value
        self._prompt = prompt
        self._turn = 0

    async def start(self, task: Task, *, seed: int) -> Sequence[Message]:
        messages: Sequence[Message] = ()
        for attempt in reversed(self._tries):
            messages = await settled(attempt.start(task, seed=seed))
        return messages

    async def step(self, message: Message) -> Step:
        """Judge this try; after a wrong first one, ask again. Not judged ends the episode."""
        judged: Step = await settled(self._tries[self._turn].step(message))
        score = judged.score
        if score is None or not judged.done:
            raise RuntimeError("second_try needs an inner environment that judges its first answer")
        self._turn += 1
        wrong = score.judged and score.outcome is not Outcome.CORRECT
        if self._turn == 1 and wrong:
            return Step(messages=(user(self._prompt),), score=score)
        if self._turn == 2 and score.value is not None:
            score = _discounted(score, self._second_value)
        return Step(score=score, done=True, info={"tries": self._turn})

    async def close(self) -> None:
        for attempt in self._tries:
            await settled(attempt.close())


@register("second_try")
def second_try(
    inner: str = "reasoning_gym:chain_sum",
    second_value: float = 0.5,
    prompt: str = "That is not right. Try again.",
    **inner_args: Any,
) -> Environment:
    """``inner`` with a second try; further arguments are the inner environment's."""
    if not 0.0 <= second_value <= 1.0:
        raise UsageError(f"second_try: second_value must be from 0 to 1, got {second_value}")
    environment = load(inner, **inner_args)

    def make() -> Env:
        return SecondTry(environment.make(), environment.make(), second_value, prompt)

    return Episodes(f"second_try:{environment.name}", environment.tasks, make)


def _discounted(score: Score, factor: float) -> Score:
    assert score.value is not None
    return replace(score, value=score.value * factor)
