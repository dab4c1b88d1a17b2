"""Reads what a data set calls its tests; the forms in use, and nothing else.

================================================  ================================================
form                                              is
================================================  ================================================
``[{"input": ..., "output": ...}, ...]``          stdin and stdout of a program
``{"inputs": [...], "outputs": [...]}``           the same, as in APPS, TACO and LiveCodeBench
either of them with a function's name             calls of that function: ``"fn_name"`` (also
                                                  ``"entry_point"``, ``"fn"``), arguments a list,
                                                  or one JSON value per line
``[{"fn": ..., "args": [...], "expected": ...}]`` calls, with ``"kwargs"`` where needed
``{"test": ..., "entry_point": ...}``             a hidden program with ``check(candidate)``, as in
                                                  HumanEval; ``"prompt"`` is the code before
``["assert ...", ...]``                           a hidden program, one test each, as in MBPP; also
                                                  ``{"test_list": ..., "test_setup_code": ...}``
any other text                                    a hidden program
================================================  ================================================

A text that is JSON is read as what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.errors import UsageError

_FUNCTION = ("fn_name", "fn", "entry_point", "function", "func_name")
_INPUT, _OUTPUT = ("input", "stdin"), ("output", "stdout", "expected", "expected_output")


@dataclass(frozen=True, slots=True)
class Run:
    """A program's input and what it should print."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call and what it should return: any of ``accepted``."""

    function: str
    args: tuple[Any, ...]
    accepted: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hidden:
    """A test program that calls the candidate. ``prompt`` is code that comes before both."""

    test: str
    entry_point: str = ""
    prompt: str = ""


Tests = list[Run] | list[Call] | Hidden


def read(tests: Any, where: str = "the tests") -> Tests:
    """The tests in one of the forms above. Raises UsageError, naming ``where``."""
    if isinstance(tests, bytes):
        tests = tests.decode("utf-8", "replace")
    if isinstance(tests, str):
        tests = _from_json(tests)
    if isinstance(tests, Run | Call):
        tests = [tests]
    if isinstance(tests, Hidden):
        found: Tests = tests
    elif isinstance(tests, str):
        found = Hidden(tests)
    elif isinstance(tests, Mapping):
        found = _from_mapping(tests, where)
    elif isinstance(tests, Sequence):
        found = _from_list(list(tests), "", where)
    else:
        raise UsageError(f"{where}: {type(tests).__name__} is no form of tests, see rewards.code")
    empty = not found.test.strip() if isinstance(found, Hidden) else not found
    if empty:
        raise UsageError(f"{where}: no tests, so nothing could ever fail them")
    if all(isinstance(one, Run) and not one.stdout.strip() for one in _listed(found)):
        raise UsageError(f"{where}: none expects any output, so an empty program would pass")
    return found


def _listed(tests: Tests) -> Sequence[object]:
    return [tests] if isinstance(tests, Hidden) else tests


def check_rows(rows: Iterable[Mapping[str, Any]], column: str = "tests") -> int:
    """Read the tests of every row; how many there are. Raises UsageError naming the first bad row,
    or when there is none at all."""
    number = 0
    for number, row in enumerate(rows, 1):
        if row.get(column) is None:
            have = ", ".join(sorted(row))
            raise UsageError(f"row {number}: no column {column!r} with tests (it has {have})")
        read(row[column], f"row {number}")
    if not number:
        raise UsageError("a test file with no tests: it has no rows")
    return number


def _from_json(text: str) -> Any:
    if text.lstrip()[:1] not in ("[", "{", '"'):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _from_mapping(tests: Mapping[str, Any], where: str) -> Tests:
    function = str(_first(tests, _FUNCTION) or "")
    if "test" in tests:
        return Hidden(str(tests["test"]), function, str(tests.get("prompt") or ""))
    if "test_list" in tests:
        asserts = [*tests["test_list"], *(tests.get("challenge_test_list") or ())]
        setup = str(tests.get("test_setup_code") or "")
        return Hidden("\n".join([setup, *map(str, asserts)]) if asserts else "", function)
    if "inputs" in tests and "outputs" in tests:
        inputs, outputs = tests["inputs"], tests["outputs"]
        if len(inputs) != len(outputs):
            raise UsageError(f"{where}: {len(inputs)} inputs, but {len(outputs)} outputs")
        rows = [
            {"input": one, "output": other, "wrapped": True}
            for one, other in zip(inputs, outputs, strict=True)
        ]
        return _from_list(rows, function, where)
    if "tests" in tests:
        inner = tests["tests"]
        inner = _from_json(inner) if isinstance(inner, str) else inner
        return _from_list(list(inner), function, where)
    return _from_list([tests], function, where)


def _from_list(rows: list[Any], function: str, where: str) -> Tests:
    if rows and all(isinstance(row, str) for row in rows):
        return Hidden("\n".join(rows), function)
    if all(isinstance(row, Run) for row in rows) or all(isinstance(row, Call) for row in rows):
        return rows
    read_rows = [_row(row, function, f"{where}, test {i}") for i, row in enumerate(rows, 1)]
    runs = [one for one in read_rows if isinstance(one, Run)]
    calls = [one for one in read_rows if isinstance(one, Call)]
    if runs and calls:
        raise UsageError(f"{where}: {len(calls)} of the tests name a function, the others do not")
    return runs or calls


def _row(row: Any, function: str, where: str) -> Run | Call:
    if not isinstance(row, Mapping):
        raise UsageError(f"{where}: needs an input and an output, got {row!r:.80}")
    function = str(_first(row, _FUNCTION) or function)
    given = row.get("args", _first(row, _INPUT))
    wanted = next((row[name] for name in ("expected", *_OUTPUT) if name in row), None)
    has_output = any(name in row for name in _OUTPUT)
    if not has_output or (given is None and not function):
        have = ", ".join(map(str, row))
        raise UsageError(f"{where}: needs an input and an output, has {have}")
    if not function:
        return Run(_lines(given), _lines(wanted))
    args, accepted = _arguments(given), [wanted]
    if isinstance(given, str) and "args" not in row:
        args, accepted = [_value(line) for line in given.splitlines()], [_value(wanted)]
    if row.get("wrapped") and isinstance(wanted, list) and len(wanted) == 1:
        accepted.append(wanted[0])  # APPS wraps what is returned in a list, or does not
    kwargs = {str(name): value for name, value in dict(row.get("kwargs") or {}).items()}
    return Call(function, tuple(args), tuple(accepted), kwargs)


def _arguments(given: Any) -> list[Any]:
    if isinstance(given, list | tuple):
        return list(given)
    return [] if given is None else [given]


def _lines(value: Any) -> str:
    """Some sets have a list of lines in place of text."""
    if isinstance(value, list | tuple):
        return "\n".join(map(str, value)) + "\n"
    return str(value)


def _value(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
