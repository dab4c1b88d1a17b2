"""What an instruction is: an identifier, a function that verifies it, and its settings' types.

A kind is a plain function of the answer's text and its settings that returns whether the text
follows the instruction. Its annotations say what a setting may be, and are checked when the data is
loaded: ``str`` is text that is not empty, ``int`` a whole number of at least 0, ``list[str]`` one
text or more, ``Relation`` a key of ``RELATIONS``, ``Language`` a code that is known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NewType, TypeVar

from rewards.errors import did_you_mean
from rewards.language import known

Relation = NewType("Relation", str)
Language = NewType("Language", str)
Verify = Callable[..., bool]
F = TypeVar("F", bound=Verify)

RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda n, wanted: n >= wanted,
    "at most": lambda n, wanted: n <= wanted,
    "less than": lambda n, wanted: n < wanted,
    "more than": lambda n, wanted: n > wanted,
    "exactly": lambda n, wanted: n == wanted,
    "around": lambda n, wanted: abs(n - wanted) <= wanted / 10,
}

KINDS: dict[str, Verify] = {}


def kind(name: str) -> Callable[[F], F]:
    """Decorator: make a function the verifier of an instruction."""

    def keep(verify: F) -> F:
        KINDS[name] = verify
        return verify

    return keep


def holds(n: int, relation: str, wanted: int) -> bool:
    """Whether a count stands in a relation to what was asked for."""
    return RELATIONS[relation](n, wanted)


def settings_of(name: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of an instruction, checked; those that are None count as absent.

    Raises ValueError for an unknown instruction, or settings that it cannot have.
    """
    if name not in KINDS:
        raise ValueError(f"unknown instruction {name!r}.{did_you_mean(str(name), KINDS)}")
    if not isinstance(given, Mapping | None):
        raise ValueError(f"{name}: its settings must be an object, got {given!r:.80}")
    found = {key: value for key, value in (given or {}).items() if value is not None}
    wanted = dict(inspect.signature(KINDS[name], eval_str=True).parameters)
    wanted.pop("text")
    for key in found:
        if key not in wanted:
            raise ValueError(f"{name} has no setting {key!r}.{did_you_mean(str(key), wanted)}")
    for key, parameter in wanted.items():
        if key in found:
            found[key] = _value(f"{name}: {key}", found[key], parameter.annotation)
        elif parameter.default is parameter.empty:
            raise ValueError(f"{name} needs the setting {key!r}")
    return found


def _value(what: str, value: Any, wanted: Any) -> Any:
    """A setting as its kind takes it. Raises ValueError."""
    if wanted is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or value < 0:
            raise ValueError(f"{what} must be a whole number, got {value!r:.80}")
        return int(value)
    if wanted == list[str]:
        texts = isinstance(value, Sequence) and not isinstance(value, str)
        if not texts or not value or not all(isinstance(one, str) and one for one in value):
            raise ValueError(f"{what} must be a list of texts, got {value!r:.80}")
        return list(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be text, got {value!r:.80}")
    if wanted is Relation and value not in RELATIONS:
        raise ValueError(f"{what} is {value!r}, not one of {', '.join(RELATIONS)}")
    return known(value) if wanted is Language else value
