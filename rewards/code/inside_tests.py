"""Runs inside a sandbox of its own, with a hidden test program and without the candidate's code.

Wherever the tests call the candidate, they reach a stand-in that looks the answer up in what the
candidate's own sandbox returned for this very call (``rewards.code.hidden`` has the whole picture).
A call that has no answer yet is written down, and gets a placeholder that goes along with whatever
the tests do with it, so that one run finds as many calls as possible. The verdict of a test counts
only when it has met no placeholder.

``work.json`` holds ``{"setup", "test", "entry_point", "answers": {test: [[call, answer], ...]}}``.
Written are lines of JSON: ``{"test": name, "index": i, "call": call}``, ``{"test": name, "passed":
bool, "final": bool, "why": text}``, and last ``{"done": true}`` or ``{"broken": why}``.

A test is, in this order of precedence: ``check`` with the entry point as its argument; each method
of each ``unittest.TestCase``; each function ``test_*``; else each statement at the top level
that calls the candidate.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import random
import sys
from contextlib import suppress
from functools import partial

from rewards.code.values import Opaque, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_CALLS = 2000  # without an answer, in one run


class Stop(BaseException):
    """Nothing more can be learnt from this test in this run."""


class Failed(BaseException):
    """The candidate gave no answer: no test can pass on that, whatever it catches."""


class Placeholder:
    """Stands in for a value that is not known yet; agrees with everything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __eq__(self, other: object) -> bool:
        return True

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__  # type: ignore[assignment]

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __float__(self) -> float:
        return 0.0

    def __int__(self) -> int:
        return 0

    __index__ = __int__


def _itself(self: Any, *others: Any) -> Any:
    return self


for _name in (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"),
    *("lshift", "rshift", "neg", "pos", "abs", "invert", "round", "getitem", "copy", "deepcopy"),
):
    setattr(Placeholder, f"__{_name}__", _itself)
    setattr(Placeholder, f"__r{_name}__", _itself)  # some of them mean nothing, and hurt nobody


class Session:
    """The calls and verdicts of one run."""

    def __init__(self, channel: int, answers: dict[str, list[list[Any]]]) -> None:
        self.channel, self.answers = channel, answers
        self.test = ""
        self.made = 0  # calls of the current test
        self.total = 0
        self.unanswered = 0
        self.known = True  # no placeholder in the current test so far
        self.lost = ""  # why a call of the current test has no answer, whatever the test catches

    def say(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        while data:
            data = data[os.write(self.channel, data) :]

    def stand_in(self, name: str) -> Callable[..., Any]:
        def candidate(*args: Any, **kwargs: Any) -> Any:
            return self.call(name, args, kwargs)

        candidate.__name__ = name
        return candidate

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = {
            "function": name,
            "args": [encode(one) for one in args],
            "kwargs": {key: encode(kwargs[key]) for key in sorted(kwargs)},
        }
        if '"opaque"' in json.dumps(call):
            if not self.known:
                raise Stop  # made from a placeholder
            raise TypeError(f"a call of {name} with an argument that is not plain data")
        made = self.answers.get(self.test, [])
        i, self.made, self.total = self.made, self.made + 1, self.total + 1
        if self.known and i < len(made) and made[i][0] == call:
            return self.replay(made[i][1], args)
        self.known = False
        self.unanswered += 1
        if self.unanswered > MAX_CALLS:
            raise Stop
        self.say({"test": self.test, "index": i, "call": call})
        return Placeholder()

    def replay(self, answer: dict[str, Any], args: tuple[Any, ...]) -> Any:
        if "failed" in answer:
            raise self.fails(answer["failed"])
        if "raised" in answer:
            kind = getattr(builtins, answer["raised"][0], None)
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                raise self.fails(f"left by {answer['raised'][1]}")
            try:
                error = kind(answer["raised"][1])
            except TypeError:  # UnicodeDecodeError and such take more
                error = Exception(answer["raised"][1])
            raise error
        value = decode(answer["value"])
        if isinstance(value, Opaque):
            raise self.fails(f"returned a {value.name}, which is not plain data")
        for ours, after in zip(args, answer.get("args") or (), strict=False):
            change(ours, decode(after))
        return value

    def fails(self, why: str) -> Failed:
        self.lost = why
        return Failed(why)

    def judge(self, test: str, body: Callable[[], Any]) -> None:
        self.test, self.made, self.known, self.lost = test, 0, True, ""
        why = ""
        random.seed(0)
        try:
            body()
        except Stop:
            self.known = False
        except BaseException as error:  # noqa: BLE001  boundary: a test may raise anything
            why = f"{type(error).__name__}: {error}"[:500]
        why = self.lost or why
        if why and self.made == 0 and not why.startswith("AssertionError"):
            raise RuntimeError(f"test {test} fails before it calls the candidate: {why}")
        self.say({"test": test, "passed": not why, "final": self.known, "why": why})


def change(ours: Any, after: Any) -> None:
    """Do to the test's argument what the candidate did to its copy."""
    if type(ours) is not type(after):
        return
    if isinstance(ours, (list, bytearray)):
        ours[:] = after
    elif isinstance(ours, (dict, set)):
        ours.clear()
        ours.update(after)


class Lenient(ast.NodeTransformer):
    """Lets a test go on after an assertion that failed on a placeholder: more calls come after it.
    With all values known, an assertion is what it was."""

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        (guarded,) = ast.parse("try: ...\nexcept Exception:\n  if __known__(): raise").body
        guarded.body = [node]  # type: ignore[attr-defined]
        return ast.fix_missing_locations(ast.copy_location(guarded, node))


def stood_in(tree: ast.Module, entry_point: str, known: dict[str, Any]) -> list[str]:
    """The names that the tests call and nobody defines: the candidate's."""
    names = {entry_point} if entry_point else set()
    defined = {"__name__", *dir(builtins), *known}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            defined.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
    loaded = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
    return sorted(names | (loaded - defined))


def collect(
    session: Session, tree: ast.Module, entry_point: str, namespace: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Run what defines the tests; name -> test."""
    stand_ins = {name: session.stand_in(name) for name in stood_in(tree, entry_point, namespace)}
    namespace.update(stand_ins)
    calling = _calling(tree.body, set(stand_ins))
    alone = all(isinstance(one, ast.Assert) for one in calling)
    loose = [one for one in tree.body if not isinstance(one, _DEFINING) and not _is_main(one)]
    later = calling if alone else loose
    _run([one for one in tree.body if one not in later and not _is_main(one)], namespace)
    check = namespace.get("check")
    if entry_point and callable(check) and "check" not in stand_ins:
        return {"check": lambda: check(stand_ins[entry_point])}
    tests = _of_unittest(namespace) or {
        name: value
        for name, value in namespace.items()
        if name.startswith("test_") and callable(value) and name not in stand_ins
    }
    if tests or not later:
        return tests
    if not alone:
        return {"program": lambda: _run(later, namespace)}
    return {f"line {one.lineno}": partial(_run, [one], namespace) for one in later}


_DEFINING = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Import, ast.ImportFrom),
)


def _calling(statements: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """The top-level statements that reach the candidate, through the tests' own functions too."""
    while True:
        reaching = [one for one in statements if _names(one) & names]
        through = {one.name for one in reaching if isinstance(one, _DEFINING[:3])}
        if through <= names:
            return [one for one in reaching if not isinstance(one, _DEFINING) and not _is_main(one)]
        names = names | through


def _names(statement: ast.stmt) -> set[str]:
    return {one.id for one in ast.walk(statement) if isinstance(one, ast.Name)}


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in _names(statement.test)  # type: ignore[arg-type]


def _run(statements: list[ast.stmt], namespace: dict[str, Any]) -> None:
    tree = Lenient().visit(ast.Module(statements, []))
    exec(compile(tree, "test.py", "exec"), namespace)


def _of_unittest(namespace: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    tests: dict[str, Callable[[], Any]] = {}
    if "unittest" not in sys.modules:  # slow to import, and the tests have not
        return tests
    import unittest

    for kind in list(namespace.values()):
        if isinstance(kind, type) and issubclass(kind, unittest.TestCase):
            for name in unittest.defaultTestLoader.getTestCaseNames(kind):
                tests[f"{kind.__name__}.{name}"] = kind(name).debug
    return tests


def main() -> None:
    channel = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    with open("work.json") as file:
        work = json.load(file)
    session = Session(channel, work["answers"])
    namespace: dict[str, Any] = {"__name__": "test", "__known__": lambda: session.known}
    sys.modules["test"] = type(sys)("test")
    random.seed(0)  # the same calls in every run
    try:
        with suppress(SyntaxError):  # a prompt that only the completion makes whole
            exec(compile(work["setup"], "setup.py", "exec"), namespace)
        tree = ast.parse(work["test"], "test.py")
        tests = collect(session, tree, work["entry_point"], namespace)
        if not tests:
            raise RuntimeError("it holds no test")
        for name, body in tests.items():
            session.judge(name, body)
    except BaseException as error:  # noqa: BLE001  boundary: the tests are anybody's
        session.say({"broken": f"{type(error).__name__}: {error}"[:500]})
        return
    session.say({"done": True})


if __name__ == "__main__":
    main()
    os._exit(0)
