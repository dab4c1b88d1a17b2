"""Decides what a judge is asked to look at, and what its levels are worth.

Each criterion is an ordered choice (worst first) or a scale of whole numbers. A level is worth its
place, from 0 for the worst to 1 for the best in equal steps, and the value of an answer is the mean
over the criteria, weighted. Weights are not shown to the judge: to change one costs no call.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rewards.errors import UsageError, did_you_mean
from rewards.judge.verdicts import Fields, Level

MAX_LEVELS = 101
RESERVED = frozenset({"hidden_chars", "special_tokens", "truncated_chars", "asks"})


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question about an answer. Give ``choices``, worst first, or ``scale``, (lowest, highest).

    Raises UsageError when it cannot be graded.
    """

    name: str
    question: str = ""
    choices: tuple[str, ...] = ()
    scale: tuple[int, int] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        problem = _problem_of(self)
        if problem:
            raise UsageError(f"criterion {self.name!r}: {problem}")

    @property
    def levels(self) -> tuple[Level, ...]:
        if self.scale is not None:
            return tuple(range(self.scale[0], self.scale[1] + 1))
        return self.choices

    def value(self, level: Level) -> float:
        """Worst 0, best 1, equal steps between."""
        return self.levels.index(level) / (len(self.levels) - 1)


@dataclass(frozen=True, slots=True)
class Rubric:
    """What makes an answer good. With ``reference`` the gold answer is shown to the judge."""

    criteria: tuple[Criterion, ...]
    instructions: str = ""
    reference: bool = False
    pass_at: float = 1.0  # from this value on the outcome is CORRECT

    def __post_init__(self) -> None:
        names = [criterion.name for criterion in self.criteria]
        if not names:
            raise UsageError("a rubric needs at least one criterion")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"two criteria are named {twice[0]!r}")
        if not isinstance(self.instructions, str) or not isinstance(self.reference, bool):
            raise UsageError("a rubric's instructions are text, and reference is true or false")
        if not _is_number(self.pass_at) or not 0 < self.pass_at <= 1:
            raise UsageError(f"pass_at lies in (0, 1], got {self.pass_at!r}")

    @property
    def fields(self) -> Fields:
        return {criterion.name: criterion.levels for criterion in self.criteria}

    def parts(self, levels: Mapping[str, Level]) -> dict[str, float]:
        """Each criterion's own value in [0, 1]."""
        return {one.name: one.value(levels[one.name]) for one in self.criteria}

    def value(self, parts: Mapping[str, float]) -> float:
        """The weighted mean; clamped, since rounding may carry it past 1."""
        total = math.fsum(one.weight for one in self.criteria)
        mean = math.fsum(one.weight * parts[one.name] for one in self.criteria) / total
        return min(1.0, max(0.0, mean))


def read_rubric(source: Any) -> Rubric:
    """A Rubric from itself, a text of instructions, a list of criteria, a mapping, or a Path.

    A text gets one criterion, ``quality``, from 1 to 5. A Path, or a text that ends in .json or
    .toml, is a file. Raises UsageError saying which criterion cannot work.
    """
    if isinstance(source, Rubric):
        return source
    if isinstance(source, Path) or _names_a_file(source):
        source = Path(source)
        return read_rubric(_read_file(source))
    if isinstance(source, str) and source.strip():
        return Rubric((Criterion("quality", "How good is the answer?", scale=(1, 5)),), source)
    if isinstance(source, Mapping):
        _check_names(source, Rubric, "rubric")
        criteria = source.get("criteria", ())
        rest = {name: value for name, value in source.items() if name != "criteria"}
        return Rubric(tuple(map(_criterion, _sequence(criteria))), **rest)
    return Rubric(tuple(map(_criterion, _sequence(source))))


def _names_a_file(source: Any) -> bool:
    return isinstance(source, str) and source.endswith((".json", ".toml")) and "\n" not in source


def _sequence(source: Any) -> Sequence[Any]:
    if isinstance(source, list | tuple):
        return source
    raise UsageError(
        "a rubric is a text, a list of criteria, or {'criteria': [...], 'instructions': ...}, "
        f"got {source!r:.100}"
    )


def _criterion(source: Any) -> Criterion:
    if isinstance(source, Criterion):
        return source
    if not isinstance(source, Mapping):
        raise UsageError(f"a criterion is a Criterion or a mapping, got {source!r:.100}")
    _check_names(source, Criterion, "criterion")
    given = dict(source)
    for name in ("choices", "scale"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    if "name" not in given:
        raise UsageError(f"a criterion needs a name: {source!r:.100}")
    return Criterion(**given)


def _check_names(source: Mapping[str, Any], kind: type, what: str) -> None:
    known = [one.name for one in fields(kind)]
    for name in source:
        if name not in known:
            raise UsageError(f"a {what} has no {name!r}.{did_you_mean(str(name), known)}")


def _read_file(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"the rubric {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"the rubric {path} is neither JSON nor .toml: {error}") from None


def _problem_of(one: Any) -> str:
    if not isinstance(one.name, str) or not one.name.strip() or len(one.name) > 64:
        return "a name is text of 1 to 64 characters"
    if one.name in RESERVED:
        return "this name is taken: it counts what was done to the text"
    if not isinstance(one.question, str):
        return f"its question is text, got {one.question!r:.100}"
    if not _is_number(one.weight) or one.weight <= 0:
        return f"a weight is a number above 0, got {one.weight!r} (turn the choices round instead)"
    if bool(one.choices) == (one.scale is not None):
        return "give either choices, worst first, or a scale (lowest, highest)"
    if one.scale is not None:
        return _problem_of_scale(one.scale)
    if not isinstance(one.choices, tuple) or not all(isinstance(c, str) and c for c in one.choices):
        return f"choices are texts, got {one.choices!r:.100}"
    if not 2 <= len(set(one.choices)) == len(one.choices) <= MAX_LEVELS:
        return f"2 to {MAX_LEVELS} different choices, got {one.choices!r:.100}"
    return ""


def _problem_of_scale(scale: Any) -> str:
    whole = isinstance(scale, tuple) and len(scale) == 2 and all(type(end) is int for end in scale)
    if not whole or not 1 <= scale[1] - scale[0] < MAX_LEVELS:
        return (
            f"a scale is two whole numbers, at most {MAX_LEVELS - 1} apart, lowest first, "
            f"got {scale!r:.100}"
        )
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
