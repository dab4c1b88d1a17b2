"""Which of the samples of one prompt are kept: small rules, applied one after the other.

A rule takes the samples of one prompt that are still kept, with how the whole group did, and says
of each why it goes, or "". Rules are named in settings as ``"correct"`` or
``{"name": "shortest", "n": 2}``; a function of one's own with the same signature is one too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_gen.errors import UsageError, did_you_mean
from rewards import Outcome, Score


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sample of a prompt."""

    text: str  # all that the model wrote, for comparisons
    score: Score
    n_tokens: int
    end: str

    @property
    def value(self) -> float:
        """The score's value; what could not be judged is below everything."""
        return float("-inf") if self.score.value is None else self.score.value


@dataclass(frozen=True, slots=True)
class Group:
    """How all the samples of the prompt did, whatever rules dropped since."""

    samples: Sequence[Candidate]

    @property
    def pass_rate(self) -> float | None:
        """Share of correct ones among the judged; None where none was judged."""
        judged = [one for one in self.samples if one.score.judged]
        if not judged:
            return None
        return sum(one.score.outcome is Outcome.CORRECT for one in judged) / len(judged)


Rule = Callable[[Sequence[Candidate], Group], Sequence[str]]  # one reason, or "", for each
RULES: dict[str, Callable[..., Sequence[str]]] = {}


def rule(function: Callable[..., Sequence[str]]) -> Callable[..., Sequence[str]]:
    """Give a rule the name of its function; its settings are its keyword-only parameters."""
    RULES[function.__name__] = function
    return function


@rule
def judged(samples: Sequence[Candidate], group: Group) -> list[str]:
    """Drop what could not be judged."""
    return ["" if one.score.judged else "not judged" for one in samples]


@rule
def correct(samples: Sequence[Candidate], group: Group) -> list[str]:
    """Keep what was judged correct."""
    return [_unless_correct(one) for one in samples]


@rule
def finished(samples: Sequence[Candidate], group: Group) -> list[str]:
    """Drop what was cut at its length limit or ran out of turns."""
    return ["cut off" if one.end in ("length", "max_turns") else "" for one in samples]


@rule
def at_least(samples: Sequence[Candidate], group: Group, *, value: float) -> list[str]:
    """Keep scores of ``value`` or more."""
    return ["" if one.value >= value else "score too low" for one in samples]


@rule
def best(samples: Sequence[Candidate], group: Group, *, n: int = 1) -> list[str]:
    """Best of K: the ``n`` highest scores, the shorter first among equals."""
    order = sorted(range(len(samples)), key=lambda i: (-samples[i].value, samples[i].n_tokens, i))
    chosen = {i for i in order[:n] if samples[i].score.judged}
    return ["" if i in chosen else "not the best" for i in range(len(samples))]


@rule
def shortest(samples: Sequence[Candidate], group: Group, *, n: int = 1) -> list[str]:
    """The ``n`` shortest; after ``correct``: right and short."""
    order = sorted(range(len(samples)), key=lambda i: (samples[i].n_tokens, i))
    chosen = set(order[:n])
    return ["" if i in chosen else "not the shortest" for i in range(len(samples))]


@rule
def first(samples: Sequence[Candidate], group: Group, *, n: int = 4) -> list[str]:
    """At most ``n`` of each prompt."""
    return ["" if i < n else "over the cap of its prompt" for i in range(len(samples))]


@rule
def diverse(samples: Sequence[Candidate], group: Group, *, overlap: float = 0.7) -> list[str]:
    """Drop what shares more than ``overlap`` of its word 3-grams (Jaccard) with an earlier one."""
    kept: list[frozenset[tuple[str, ...]]] = []
    reasons = []
    for one in samples:
        grams = _grams(one.text)
        repeats = any(_jaccard(grams, other) > overlap for other in kept)
        reasons.append("like another of its prompt" if repeats else "")
        if not repeats:
            kept.append(grams)
    return reasons


@rule
def band(
    samples: Sequence[Candidate], group: Group, *, low: float = 0.0, high: float = 1.0
) -> list[str]:
    """Difficulty: keep prompts whose pass rate lies in [low, high], all samples or none."""
    rate = group.pass_rate
    reason = "" if rate is not None and low <= rate <= high else "outside the difficulty band"
    return [reason] * len(samples)


def read_rules(given: Any) -> list[tuple[str, Rule]]:
    """Name and rule of each, in order. Raises UsageError for an unknown name or setting."""
    several = [given] if isinstance(given, str | Mapping) or callable(given) else list(given)
    return [_read(one) for one in several]


def apply_rules(rules: Sequence[tuple[str, Rule]], samples: Sequence[Candidate]) -> list[str]:
    """Why each sample was dropped, or "" for those that every rule kept."""
    reasons = [""] * len(samples)
    group = Group(samples)
    for name, one in rules:
        left = [i for i, reason in enumerate(reasons) if not reason]
        said = one([samples[i] for i in left], group)
        if len(said) != len(left):
            raise ValueError(f"rule {name!r} said {len(said)} things about {len(left)} samples")
        for i, reason in zip(left, said, strict=True):
            reasons[i] = reason
    return reasons


def _read(given: Any) -> tuple[str, Rule]:
    if callable(given):
        return getattr(given, "__name__", "a rule"), given
    table = {"name": given} if isinstance(given, str) else dict(given)
    name = table.pop("name", "")
    if name not in RULES:
        raise UsageError(f"there is no rule {name!r}.{did_you_mean(name, RULES)}")
    known = [
        parameter.name
        for parameter in inspect.signature(RULES[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for setting in table:
        if setting not in known:
            raise UsageError(
                f"rule {name!r} has no setting {setting!r}.{did_you_mean(setting, known)}"
            )
    if name == "at_least" and "value" not in table:
        raise UsageError('rule "at_least" needs value')
    return name, functools.partial(RULES[name], **table)


def _unless_correct(one: Candidate) -> str:
    if not one.score.judged:
        return "not judged"
    return "" if one.score.outcome is Outcome.CORRECT else str(one.score.outcome)


def _grams(text: str, n: int = 3) -> frozenset[tuple[str, ...]]:
    words = text.lower().split()
    if len(words) < n:
        return frozenset([tuple(words)])
    return frozenset(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    return len(a & b) / len(a | b)
