"""Wrong answers that attack the judge: paid nothing, judged in time, harmless to the next answer.

All answers of a backend are judged once, several at a time, each followed by a right one; the tests
look at what became of them. ``attack_programs/answers.py`` has the answers.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import pytest

from rewards.code import Policy, score
from rewards.sandbox.protocol import Limits, Sandbox
from rewards.score import Outcome, Score
from tests.rewards.attack_host import several_at_a_time
from tests.rewards.attack_programs import answers
from tests.rewards.attack_programs.answers import Answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

POLICY = Policy(limits=Limits(wall_s=4.0, cpu_s=1.0))
JUDGED_S = 60.0  # with at most three runs of 4 + 2 s, and other answers before it in the queue
BATTLE_S = 180.0

# Judged by every form that tests can have; the other answers by calls and a hidden program.
IN_EVERY_FORM = {
    *("equal_to_everything", "int_that_equals_everything", "any_of_mock", "skips", "interrupts"),
    *("exits_at_once", "leaves_when_called", "asserts_itself", "stops_iteration"),
    *("reads_the_tests", "patches_builtins", "patches_libraries", "import_hooks"),
    *("forged_results_everywhere", "defines_check", "nothing", "plants_modules"),
}
# What a backend has to hold, rather than the judge.
BY_PROCESS = IN_EVERY_FORM | {
    *("kills_everything", "kills_its_parent", "stops_its_parent", "kills_itself", "fork_bomb"),
    *("memory", "floods", "endless", "daemon_that_answers", "rewrites_its_files", "deep_list"),
}
# They take all the time there is, in whatever form they are asked: once is enough.
SLOW = {"endless_at_once", "endless_power", "endless_iterator", "sleeps", "floods", "recursion"}
KINDS: dict[str, tuple[Any, str, tuple[Answer, ...]]] = {
    "program": (answers.RUNS, answers.RIGHT_PROGRAM, answers.PROGRAMS),
    "calls": (answers.CALLS, answers.RIGHT_FUNCTION, answers.FUNCTIONS),
    "hidden": (answers.HIDDEN, answers.RIGHT_FUNCTION, answers.FUNCTIONS),
    "asserts": (answers.ASSERTS, answers.RIGHT_FUNCTION, answers.FUNCTIONS),
    "unittest": (answers.UNITTEST, answers.RIGHT_FUNCTION, answers.FUNCTIONS),
}


def chosen(backend: str, kind: str, name: str) -> bool:
    if kind == "calls":
        return backend == "bubblewrap" or name in SLOW
    if kind == "hidden":
        return name not in SLOW if backend == "bubblewrap" else name in BY_PROCESS - SLOW
    return kind == "program" or (backend == "bubblewrap" and name in IN_EVERY_FORM)


ALL = [
    (backend, (kind, one.name))
    for backend in ("bubblewrap", "docker")
    for kind, (_, _, ones) in KINDS.items()
    for one in ones
    if chosen(backend, kind, one.name)
]
ALL += [("bubblewrap", ("response", name)) for name, _ in answers.RESPONSES]
RESPONSES = dict(answers.RESPONSES)


@dataclass
class Judged:
    """What became of one answer, and of the right one after it."""

    score: Score | None = None
    error: str = "not judged in time"
    took_s: float = 0.0
    cpu_s: float = 0.0  # of the thread that judged: what the answer cost this process
    after: Score | None = None


@pytest.fixture(scope="session")
def battles() -> dict[str, dict[tuple[str, str], Judged]]:
    """By backend: what became of the answers, once ``battle`` has had them judged."""
    return {}


@pytest.fixture
def battle(
    request: pytest.FixtureRequest, battles: dict[str, dict[tuple[str, str], Judged]]
) -> dict[tuple[str, str], Judged]:
    backend = request.param
    sandbox = request.getfixturevalue(f"{backend}_sandbox")
    if backend not in battles:
        battles[backend] = judge_everything(sandbox, [key for of, key in ALL if of == backend])
    return battles[backend]


def judge_everything(
    sandbox: Sandbox, keys: list[tuple[str, str]]
) -> dict[tuple[str, str], Judged]:
    judged = {key: Judged() for key in keys}
    several_at_a_time(lambda key: judge(sandbox, key, judged[key]), keys, BATTLE_S)
    return judged


def judge(sandbox: Sandbox, key: tuple[str, str], into: Judged) -> None:
    kind, name = key
    tests, _, ones = KINDS["hidden" if kind == "response" else kind]
    by_name = {one.name: fenced(one.code) for one in ones}
    response = RESPONSES[name] if kind == "response" else by_name[name]
    start, cpu = time.monotonic(), own_cpu_s()
    try:
        into.score = score(response, tests, sandbox=sandbox, policy=POLICY)
    except BaseException as error:  # noqa: BLE001  none is right
        into.error = repr(error)[:1000]
    into.took_s, into.cpu_s = time.monotonic() - start, own_cpu_s() - cpu
    try:
        into.after = score(fenced(answers.RIGHT_FUNCTION), answers.CALLS, sandbox=sandbox)
    except Exception as error:  # noqa: BLE001
        into.error = repr(error)[:1000]


def own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_utime + used.ru_stime


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\n"


def label(one: str | tuple[str, str]) -> str:
    return one if isinstance(one, str) else "-".join(one)


@pytest.mark.parametrize(("battle", "key"), ALL, indirect=["battle"], ids=label)
def test_wrong_answer(battle: dict[tuple[str, str], Judged], key: tuple[str, str]) -> None:
    judged = battle[key]
    if judged.score is None:
        pytest.fail(judged.error)
    assert judged.score.value == 0.0, judged.score
    assert judged.score.outcome in (Outcome.WRONG, Outcome.UNPARSEABLE), judged.score
    assert len(judged.score.detail.encode("utf-8")) < 5000  # can be written down
    assert judged.took_s < JUDGED_S
    # Megabytes of fences take about half a second; a busy neighbour core can triple that.
    assert judged.cpu_s < 3.0, f"the judge itself spent {judged.cpu_s:.1f} s on it"
    assert judged.after is not None, f"the answer after it was not judged: {judged.error}"
    assert judged.after.outcome is Outcome.CORRECT, judged.after


def test_the_right_answers_are_right(bubblewrap_sandbox: Sandbox) -> None:
    for kind, (tests, right, _) in KINDS.items():
        assert score(fenced(right), tests, sandbox=bubblewrap_sandbox).value == 1.0, kind


def test_names_of_answers_are_unique() -> None:
    for ones in (answers.FUNCTIONS, answers.PROGRAMS):
        names = [one.name for one in ones]
        assert len(names) == len(set(names))
    assert {one.name for one in answers.FUNCTIONS} >= BY_PROCESS | SLOW


def test_guessing_every_answer_is_paid_by_share_only_when_asked(
    bubblewrap_sandbox: Sandbox,
) -> None:
    always_three = fenced("def add(a, b):\n    return 3\n")
    strict = score(always_three, answers.CALLS, sandbox=bubblewrap_sandbox)
    shared = score(always_three, answers.CALLS, sandbox=bubblewrap_sandbox, partial=True)
    assert (strict.value, strict.outcome) == (0.0, Outcome.WRONG)
    assert (shared.value, shared.outcome) == (pytest.approx(1 / 3), Outcome.WRONG)


def test_an_exit_does_not_count_for_the_tests_it_skipped(bubblewrap_sandbox: Sandbox) -> None:
    answer = fenced("import os\ndef add(a, b):\n    if a == 10: os._exit(0)\n    return a + b\n")
    shared = score(answer, answers.CALLS, sandbox=bubblewrap_sandbox, partial=True)
    assert (shared.value, shared.outcome) == (pytest.approx(2 / 3), Outcome.WRONG)
