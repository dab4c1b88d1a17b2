"""``envs.check``: the self-checks that a good environment passes.

For each task a fresh episode is given one answer and its score compared:

- the gold answer (``str(task.answer)``) must score 1 and be correct,
- an empty answer and the question echoed back must score 0,
- all of this twice must give the same conversation and the same score,
- training and held-out questions must not meet, and no task may change between two look-ups.

Whatever raises, hangs or could not be judged is a failure of the check it happened in.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.protocol import Environment, Message, Task
from envs.single_turn import settled
from envs.splitting import question_of
from rewards import Outcome, Score

MAX_CONCURRENT = 32
SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """One check that did not hold for one task."""

    check: str  # gold | empty | echo | repeat | split | raised
    task_id: str
    seen: str


@dataclass
class CheckReport:
    """What ``check`` found; ``ok`` when nothing failed."""

    name: str
    tasks: int = 0
    without_gold: int = 0  # tasks whose answer is None: their gold check was left out
    failures: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures

    def count(self, check: str) -> int:
        """Failures of one kind."""
        return sum(failure.check == check for failure in self.failures)

    def __str__(self) -> str:
        head = f"{self.name}: {self.tasks} tasks checked, {len(self.failures)} failures"
        if self.without_gold:
            head += f", {self.without_gold} without a gold answer"
        shown = [f"  {f.check} of {f.task_id}: {f.seen}" for f in self.failures[:SHOWN]]
        more = len(self.failures) - SHOWN
        return "\n".join([head, *shown, *([f"  ... and {more} more"] if more > 0 else [])])


def check(
    environment: Environment,
    n: int = 50,
    *,
    tasks: Iterable[Task] | None = None,
    seed: int = 0,
    timeout_s: float = 60.0,
) -> CheckReport:
    """Check ``n`` training tasks and as many held-out ones as there are up to ``n``, or ``tasks``.

    ``timeout_s`` is the deadline of one episode. May be called inside a running event loop (a
    notebook), which it blocks.
    """
    report = CheckReport(environment.name)
    chosen = list(tasks) if tasks is not None else _sample(environment, n, report)
    report.tasks = len(chosen)
    work = _check_all(environment, chosen, report, seed, timeout_s)
    _run(lambda: asyncio.run(work))
    report.failures.sort(key=lambda failure: (failure.check, failure.task_id))
    return report


def _sample(environment: Environment, n: int, report: CheckReport) -> list[Task]:
    """Training and held-out tasks; notes instability and overlap."""
    source = environment.tasks
    train = [source.train(index) for index in range(n)]
    aside = _some_held_out(environment, n)
    for index in reversed(range(n)):  # another order of access must make no difference
        if source.train(index) != train[index]:
            report.failures.append(Failure("repeat", train[index].task_id, "the task changed"))
    questions = {question_of(task.messages) for task in aside}
    for task in train:
        if question_of(task.messages) in questions:
            report.failures.append(Failure("split", task.task_id, "trained on and held out"))
    return [*train, *aside]


def _some_held_out(environment: Environment, n: int) -> Sequence[Task]:
    """As many of ``n`` held-out tasks as there are, found by halving."""
    while n:
        try:
            return environment.tasks.held_out(n)
        except ValueError:  # the contract's word for "there are fewer"
            n //= 2
    return []


async def _check_all(
    environment: Environment,
    tasks: Sequence[Task],
    report: CheckReport,
    seed: int,
    timeout_s: float,
) -> None:
    slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def one(task: Task) -> None:
        async with slots:
            await _check_task(environment, task, report, seed, timeout_s)

    await asyncio.gather(*(one(task) for task in tasks))


async def _check_task(
    environment: Environment, task: Task, report: CheckReport, seed: int, timeout_s: float
) -> None:
    answers = {"empty": "", "echo": question_of(task.messages)}
    if task.answer is None:
        report.without_gold += 1
    else:
        answers["gold"] = str(task.answer)
    for name, answer in answers.items():
        try:
            async with asyncio.timeout(timeout_s):
                shown, score = await _episode(environment, task, answer, seed)
                again = await _episode(environment, task, answer, seed) if name != "empty" else None
        except Exception as error:  # noqa: BLE001  boundary: environment code
            report.failures.append(Failure(name, task.task_id, f"raised {error!r:.300}"))
            continue
        wanted = (1.0, True) if name == "gold" else (0.0, False)
        if score is None or (score.value, score.outcome is Outcome.CORRECT) != wanted:
            report.failures.append(Failure(name, task.task_id, _seen(answer, score)))
        if again is not None and again != (shown, score):
            report.failures.append(Failure("repeat", task.task_id, f"{name}: not the same twice"))


async def _episode(
    environment: Environment, task: Task, answer: str, seed: int
) -> tuple[list[Message], Score | None]:
    """One answer in a fresh episode: the messages before it and the score after it."""
    env = environment.make()
    try:
        messages = list(await settled(env.start(task, seed=seed)))
        step = await settled(env.step({"role": "assistant", "content": answer}))
        return [*messages, *step.messages], step.score
    finally:
        await settled(env.close())


def _seen(answer: str, score: Score | None) -> str:
    if score is None:
        return f"{answer!r:.80} was not scored at once"
    return f"{answer!r:.80} scored {score.value} ({score.outcome}) {score.detail[-200:]}".rstrip()


def _run(work: Callable[[], Any]) -> None:
    """``work()`` here, or in a thread of its own where an event loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        work()
        return
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=guarded, name="envs.check")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
