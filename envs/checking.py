"""``envs.check``: the self-checks that a good environment passes.

For each task a fresh episode is given answers by a scripted policy and its score compared:

- the gold policy must score 1 and be correct: ``str(task.answer)`` again and again, or a function
  of the task and the conversation so far, for an environment of several turns or with tools,
- empty answers and the question echoed back must score 0,
- all of this twice must give the same conversation and the same score,
- training and held-out questions must not meet, and no task may change between two look-ups,
- every call returns within the deadline,
- ``close`` leaves nothing behind: threads, processes, open files and sockets, temporary files.

An episode goes on until it is done, or for ``TURNS`` turns (the environment's budget, if it has
one); then ``unfinished`` is asked, where there is one. Whatever raises, hangs or could not be
judged is a failure of the check it happened in.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.leftovers import left_behind
from envs.protocol import Budget, EndReason, Environment, Message, Task
from envs.splitting import question_of
from rewards import Outcome, Score
from rewards.threads import WORLDS, in_thread

MAX_CONCURRENT = 32
SHOWN = 5
TURNS = 8  # as many as a training job allows where nothing else is said

Gold = Callable[[Task, Sequence[Message]], "str | Message"]


@dataclass(frozen=True)
class Failure:
    """One check that did not hold for one task."""

    check: str  # gold | empty | echo | repeat | split | left behind
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
    gold: Gold | None = None,
) -> CheckReport:
    """Check ``n`` training tasks and as many held-out ones as there are up to ``n``, or ``tasks``.

    ``timeout_s`` is the deadline of one call of the environment. ``gold`` is a policy that solves
    every task: ``gold(task, messages)`` returns the next answer, a text or a message.
    May be called inside a running event loop (a notebook), which it blocks.
    """
    report = CheckReport(environment.name)
    chosen = list(tasks) if tasks is not None else _sample(environment, n, report)
    report.tasks = len(chosen)
    checks = _Checks(environment, report, seed, timeout_s, gold)
    work = _check_all(checks, chosen)
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


@dataclass(frozen=True, slots=True)
class _Checks:
    """What the checks of every task share."""

    environment: Environment
    report: CheckReport
    seed: int
    timeout_s: float
    gold: Gold | None

    def fail(self, check: str, task: Task, seen: str) -> None:
        self.report.failures.append(Failure(check, task.task_id, seen))


async def _check_all(checks: _Checks, tasks: Sequence[Task]) -> None:
    slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def one(task: Task) -> None:
        async with slots:
            await _check_task(checks, task)

    await asyncio.gather(*(one(task) for task in tasks))
    if not tasks:
        return

    async def episode() -> None:
        try:
            await _episode(checks, tasks[0], lambda task, messages: "")
        except Exception:  # noqa: BLE001  boundary: environment code; told by the checks above
            pass

    for what in await left_behind(episode):
        checks.fail("left behind", tasks[0], what)


async def _check_task(checks: _Checks, task: Task) -> None:
    policies: dict[str, Gold] = {
        "empty": lambda task, messages: "",
        "echo": lambda task, messages: question_of(task.messages),
    }
    if checks.gold is not None:
        policies["gold"] = checks.gold
    elif task.answer is None:
        checks.report.without_gold += 1
    else:
        policies["gold"] = lambda task, messages: str(task.answer)
    for name, policy in policies.items():
        try:
            shown, score = await _episode(checks, task, policy)
            again = await _episode(checks, task, policy) if name != "empty" else None
        except Exception as error:  # noqa: BLE001  boundary: environment code
            checks.fail(name, task, f"raised {error!r:.300}")
            continue
        wanted = (1.0, True) if name == "gold" else (0.0, False)
        if score is None or (score.value, score.outcome is Outcome.CORRECT) != wanted:
            said = next(m["content"] for m in reversed(shown) if m["role"] == "assistant")
            checks.fail(name, task, _seen(said, score))
        if again is not None and again != (shown, score):
            checks.fail("repeat", task, f"{name}: not the same twice")


async def _episode(checks: _Checks, task: Task, policy: Gold) -> tuple[list[Message], Score | None]:
    """A fresh episode played by ``policy``: the conversation and the last score."""
    env = checks.environment.make()
    budget: Budget = getattr(checks.environment, "budget", Budget())
    score: Score | None = None

    async def call(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await _in_time(method, checks.timeout_s, *args, **kwargs)

    try:
        messages = list(await call(env.start, task, seed=checks.seed))
        if hasattr(env, "tools"):
            await call(env.tools)
        for _ in range(budget.turns or TURNS):
            said = policy(task, tuple(messages))
            messages.append(
                {"role": "assistant", "content": said} if isinstance(said, str) else said
            )
            step = await call(env.step, messages[-1])
            messages += step.messages
            score = step.score or score
            if step.done:
                return messages, score
        if score is None and hasattr(env, "unfinished"):
            score = await call(env.unfinished, EndReason.MAX_TURNS)
        return messages, score
    finally:
        await call(env.close)


async def _in_time(method: Callable[..., Any], timeout_s: float, *args: Any, **kwargs: Any) -> Any:
    """One call as a rollout makes it. Raises TimeoutError naming the method."""
    try:
        if inspect.iscoroutinefunction(method):
            async with asyncio.timeout(timeout_s):
                return await method(*args, **kwargs)
        if getattr(method, "instant", False):
            return method(*args, **kwargs)
        return await in_thread(lambda: method(*args, **kwargs), timeout_s, WORLDS)
    except TimeoutError as error:
        raise TimeoutError(f"{method.__name__} gave no answer within {timeout_s:g} s") from error


def _seen(answer: str, score: Score | None) -> str:
    if score is None:
        return f"{answer!r:.80} was not scored"
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
