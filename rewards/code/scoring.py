"""From a response and its tests to a score: extracts the program, runs it, counts what passed.

=============================================  ================================================
what happened                                  score
=============================================  ================================================
all tests passed                               1, CORRECT
some did                                       0, or with ``partial`` their share; WRONG
no program in the response                     0, UNPARSEABLE
it does not compile, exits with an error or    the test is failed, which ``detail`` says; these
by a signal, prints or returns nothing, or     are the program's doing, not a time-out or error
passes a limit of time, memory or output       of ours
the sandbox failed, or the tests by            None, ERROR
themselves
=============================================  ================================================

Expected output never enters the sandbox; what a hidden test program is spared and cannot be is in
``rewards.code.hidden``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.code import cases, compare, extract, languages
from rewards.code.calling import answers, ended
from rewards.code.hidden import TestsBroken, Verdict, verdicts
from rewards.code.values import encode
from rewards.errors import UsageError
from rewards.registry import register
from rewards.sandbox import load
from rewards.sandbox.protocol import Finished, Limits, Sandbox, SandboxError
from rewards.score import Outcome, Score

DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Policy:
    """How programs are run and compared."""

    limits: Limits = DEFAULT_LIMITS  # of one start: one input, or all calls together
    tolerance: float = 1e-6  # of numbers with a point or an exponent, see rewards.code.compare
    strict: bool = False  # an expected list must come back as a list
    bare: bool = False  # a response without any fence is all program


_default: list[Sandbox] = []
_default_lock = threading.Lock()


def default_sandbox() -> Sandbox:
    """The one that is used when none is given: ``rewards.sandbox.load("auto")``, once."""
    with _default_lock:
        if not _default:
            _default.append(load("auto"))
        return _default[0]


def score(
    response: str,
    tests: Any,
    *,
    language: str | None = None,
    sandbox: Sandbox | None = None,
    partial: bool = False,
    policy: Policy | None = None,
) -> Score:
    """Judge the program in ``response`` by ``tests`` (``rewards.code.cases`` has the forms).

    ``language`` None takes the language of the last fenced block, Python where it names none. With
    ``partial`` the value is the share of tests that passed. ``parts``: "passed", "tests", counted
    up to the first failure unless ``partial``. Raises UsageError for tests, a language or a
    sandbox that cannot work.

    Can it be hacked? Not by attacking the judge, as far as we know: see ``docs/sandbox.md``. By
    fitting the tests, yes: a program that prints the answers to inputs it has seen in the prompt,
    or a constant when most tests expect it; ``partial`` pays for that in part. Many tests with
    varied inputs are the remedy.
    """
    wanted, policy = cases.read(tests), policy or Policy()
    known = languages.get(language).name if language else None
    runs = isinstance(wanted, list) and isinstance(wanted[0], cases.Run)
    if known not in (None, "python") and not runs:
        raise UsageError(f"calls and hidden test programs are for python, not {known}")
    bare = policy.bare or (isinstance(wanted, cases.Hidden) and bool(wanted.prompt))
    block = extract.program(response, known, bare=bare)
    if block is None:
        return Score(0.0, Outcome.UNPARSEABLE, detail="no fenced block after the thinking")
    name = known or block.language or "python"
    if name not in languages.LANGUAGES or (name != "python" and not runs):
        return Score(0.0, Outcome.UNPARSEABLE, detail=f"the program is in {name[:50]!r}")
    sandbox = sandbox or default_sandbox()
    spoken = languages.LANGUAGES[name]
    languages.check_toolchain(spoken, sandbox)
    try:
        judged = list(_judge(wanted, block.code, _Job(sandbox, spoken, policy, stop=not partial)))
    except SandboxError as error:
        return Score(None, Outcome.ERROR, detail=f"sandbox {sandbox.name}: {error}")
    except TestsBroken as error:
        return Score(None, Outcome.ERROR, detail=f"the hidden test program is broken: {error}")
    total = len(judged) if isinstance(wanted, cases.Hidden) else len(wanted)
    return _score(judged, total, partial)


def _check_tests(fields: Mapping[str, Any]) -> None:
    wanted = fields["tests"] if fields.get("tests") is not None else fields.get("answer")
    if wanted is None:
        raise ValueError("the reward 'code' needs tests: a column 'tests', or the answer")
    cases.read(wanted, "tests")


@register("code", settings=["partial"], check=_check_tests)
def code(
    completion: str,
    tests: Any = None,
    answer: Any = None,
    language: str | None = None,
    partial: bool = False,
) -> Score:
    """``score`` on the column ``tests``, or ``answer`` where there is none. Hackable as that is."""
    wanted = tests if tests is not None else answer
    if wanted is None:
        raise UsageError("the reward 'code' needs tests: a column 'tests', or the answer")
    return score(completion, wanted, language=language, partial=partial)


@dataclass(frozen=True, slots=True)
class _Job:
    sandbox: Sandbox
    language: languages.Language
    policy: Policy
    stop: bool  # at the first test that fails


def _score(judged: Sequence[Verdict], total: int, partial: bool) -> Score:
    passed = sum(one.passed for one in judged)
    failed = next((one for one in judged if not one.passed), None)
    parts = {"passed": float(passed), "tests": float(total)}
    if failed is None and passed == total and total:
        return Score(1.0, Outcome.CORRECT, parts)
    value = passed / total if partial and total else 0.0
    detail = f"{failed.name}: {failed.why}" if failed else "a test gave no verdict"
    return Score(value, Outcome.WRONG, parts, languages.encoded(detail[:1000]).decode())


def _judge(wanted: cases.Tests, program: str, job: _Job) -> Iterator[Verdict]:
    if isinstance(wanted, cases.Hidden):
        whole = _with_prompt(program, wanted)
        yield from verdicts(job.sandbox, whole, wanted, job.policy.limits, stop=job.stop)
        return
    runs = [one for one in wanted if isinstance(one, cases.Run)]
    calls = [one for one in wanted if isinstance(one, cases.Call)]
    for verdict in _runs(runs, program, job) if runs else _calls(calls, program, job):
        yield verdict
        if job.stop and not verdict.passed:
            return


def _with_prompt(program: str, wanted: cases.Hidden) -> str:
    """The prompt's code and the program: as its continuation, unless that defines the function
    anew."""
    if not wanted.prompt:
        return program
    name = re.escape(wanted.entry_point)
    anew = re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=", program, re.MULTILINE)
    return wanted.prompt + ("\n\n" if anew else "") + program


def _runs(wanted: Sequence[cases.Run], program: str, job: _Job) -> Iterator[Verdict]:
    """Each input in a sandbox of its own: no run can leave anything for the next."""
    ready = languages.ready(job.language, program, job.sandbox, job.policy.limits)
    if isinstance(ready, Finished):
        yield Verdict("build", False, f"does not compile: {ended(ready)}")
        return
    for i, test in enumerate(wanted, 1):
        stdin = test.stdin.encode("utf-8", "surrogatepass")
        finished = job.sandbox.run(replace(ready, stdin=stdin))
        why = ""
        if not finished.ok:
            why = ended(finished)
        else:
            got = finished.stdout.decode("utf-8", "replace")
            if not compare.same_text(got, test.stdout, job.policy.tolerance):
                why = f"wrong output {got[:100]!r}"
        yield Verdict(f"test {i}", not why, why)


def _calls(wanted: Sequence[cases.Call], program: str, job: _Job) -> Iterator[Verdict]:
    calls = [
        {
            "function": one.function,
            "args": [encode(arg) for arg in one.args],
            "kwargs": {name: encode(value) for name, value in one.kwargs.items()},
        }
        for one in wanted
    ]
    replies = answers(job.sandbox, program, calls, job.policy.limits, stop=job.stop)
    for i, (test, reply) in enumerate(zip(wanted, replies, strict=True), 1):
        why = _why_wrong(test, reply, job.policy)
        yield Verdict(f"test {i}", not why, why)


def _why_wrong(test: cases.Call, reply: dict[str, Any], policy: Policy) -> str:
    """Empty when the reply is right."""
    if "failed" in reply:
        return str(reply["failed"])
    if "raised" in reply:
        return f"raised {reply['raised'][1]}"
    got = reply["value"]
    for expected in test.accepted:
        if compare.same_value(got, expected, policy.tolerance, strict=policy.strict):
            return ""
    return f"wrong value {json.dumps(got)[:100]}"
