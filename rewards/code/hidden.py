"""Runs a hidden test program without ever letting it share an interpreter with the candidate.

::

    sandbox 1: the tests, and a stand-in for the candidate
        its calls, as data          ->  here  ->  sandbox 2: the candidate, which makes the calls
        the answers, as data        <-  here  <-
    sandbox 1 again: the tests, with the answers; it decides

The expected values are in sandbox 1 only, the candidate in sandbox 2 only, each is gone when its
run ends, and what comes back is built from JSON, of exact built-in types. So there is no frame, no
``gc``, no file and no environment with the expected values for the candidate to find, no
``__eq__``, ``assert``, ``unittest`` or exit of its to change the verdict, and no verdict to forge:
the process that decides holds no code of the candidate's.

The calls are not known beforehand, and later ones may depend on earlier answers. So the tests run
in rounds. In the first the stand-in returns placeholders that agree with everything, which brings
out most calls at once; in each further round all that is known is replayed. Straight-line tests,
which nearly all are, take two rounds. Random numbers are seeded, so that a round repeats the last.

What it cannot do: arguments and results that are not plain data (see ``rewards.code.values``);
iterators are, by their items. A candidate that returns something else fails, since it could
otherwise escape judgement by doing so. State that one call leaves for the next is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rewards.code.calling import Json, answers, ended, inside, lines
from rewards.code.cases import Hidden
from rewards.sandbox.protocol import Limits, Sandbox

MAX_ROUNDS = 40


class TestsBroken(Exception):
    """The test program fails by itself: nothing was judged."""

    __test__ = False  # not for pytest


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    passed: bool
    why: str = ""


@dataclass(slots=True)
class Round:
    """What one run of the tests brought out."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)  # of all tests that were run
    final: bool = True  # whether none of them met a placeholder
    calls: list[tuple[str, int, Json]] = field(default_factory=list)  # test, which of its calls
    done: bool = False
    ending: str = ""


def verdicts(
    sandbox: Sandbox, code: str, hidden: Hidden, limits: Limits, *, stop: bool = False
) -> list[Verdict]:
    """One verdict per test of the program. With ``stop``, a call without an answer ends it all.

    Raises TestsBroken, and SandboxError.
    """
    known: dict[str, list[tuple[Json, Json]]] = {}
    for _ in range(MAX_ROUNDS):
        found = _round(sandbox, hidden, known, limits)
        if found.done and found.final:
            return list(found.verdicts.values())
        if not found.calls:
            break
        replies = answers(sandbox, code, [call for _, _, call in found.calls], limits, stop=stop)
        for (test, i, call), reply in zip(found.calls, replies, strict=True):
            of_test = known.setdefault(test, [])
            del of_test[i:]  # what was asked there before, on the ground of a placeholder
            of_test.append((call, reply))
            if stop and "failed" in reply:
                return [Verdict(test, False, reply["failed"])]
    why = f"the tests do not end ({found.ending})" if not found.done else "the tests do not settle"
    return [*found.verdicts.values(), Verdict("all", False, why)]


def _round(
    sandbox: Sandbox, hidden: Hidden, known: dict[str, list[tuple[Json, Json]]], limits: Limits
) -> Round:
    work = {
        "setup": hidden.prompt,
        "test": hidden.test,
        "entry_point": hidden.entry_point,
        "answers": known,
    }
    finished = sandbox.run(inside("inside_tests", work, limits))
    found = Round(ending=ended(finished))
    for line in lines(finished):
        if "broken" in line:
            if not known:
                raise TestsBroken(line["broken"])
            found.ending = line["broken"]  # by an answer, then, which is the candidate's
        elif "call" in line:
            found.calls.append((line["test"], line["index"], line["call"]))
        elif "passed" in line:
            name = line["test"]
            found.verdicts[name] = Verdict(name, line["passed"], line["why"])
            found.final = found.final and line["final"]
        elif "done" in line:
            found.done = True
    if not found.done and not found.calls and not known:
        raise TestsBroken(f"it ends before it calls the candidate: {found.ending}")
    return found
