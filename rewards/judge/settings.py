"""Decides what can be set about asking a judge, and refuses what cannot work before it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rewards.errors import UsageError, did_you_mean
from rewards.http import api_key

SAMPLING: Mapping[str, Any] = {"temperature": 0.0, "max_tokens": 1024, "seed": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a judge is asked. Raises UsageError naming the one that cannot work."""

    api_key_env: str | None = None  # name of the variable that holds the key; never the key
    timeout_s: float = 50.0  # one verdict, from the first request on: every try, every wait
    queue_s: float = 600.0  # waiting for one of the ``concurrency`` places before that
    concurrency: int = 16  # verdicts worked on at once, per event loop
    attempts: int = 6  # requests for one reply: 429, 5xx and lost connections are tried again
    asks: int = 3  # replies for one verdict: one that is none is asked again
    budget_tokens: int | None = None  # of all prompts and replies, as the server counts them
    cache: str | Path | None = None  # folder of raw replies; None keeps none
    sampling: Mapping[str, Any] = field(default_factory=dict)  # over SAMPLING; None takes one out
    structured: bool = True  # ask for a JSON schema; a server that refuses is asked without
    reason_chars: int = 600  # room for the judge's reason before its grades; 0 asks for none
    max_chars: int = 20_000  # of each text; more is left out of its middle
    conversation: bool = False  # show all messages before the answer, not only the last question
    rubric_column: str | None = None  # a column of the task that holds the rubric of its row

    def __post_init__(self) -> None:
        for name, low in (("concurrency", 1), ("attempts", 1), ("asks", 1), ("max_chars", 100)):
            _whole(name, getattr(self, name), low)
        _whole("reason_chars", self.reason_chars, 0)
        if self.budget_tokens is not None:
            _whole("budget_tokens", self.budget_tokens, 1)
        for name in ("timeout_s", "queue_s"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise UsageError(f"judge: {name} is a number of seconds above 0, got {value!r}")
        _check_sampling(self.sampling)
        if self.api_key_env is not None:
            _check_key(self.api_key_env)

    def request_with(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling part of a request; what the user took out stays out."""
        merged = {**SAMPLING, **self.sampling}
        merged |= {name: v for name, v in sampling.items() if merged.get(name) is not None}
        return {name: value for name, value in merged.items() if value is not None}


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from keywords. Raises UsageError for one that does not exist."""
    known = [one.name for one in fields(Settings)]
    for name in given:
        if name not in known:
            raise UsageError(f"a judge has no setting {name!r}.{did_you_mean(name, known)}")
    return Settings(**given)


def _check_key(variable: str) -> None:
    shown = variable if variable.isidentifier() else "what was given"
    key = api_key(variable)
    if not key:
        raise UsageError(
            f"judge: api_key_env names an environment variable, and {shown} is not set; "
            "export the key under that name"
        )
    if not all("!" <= character <= "~" for character in key):
        raise UsageError(f"judge: {shown} holds characters that no API key has")


def _whole(name: str, value: Any, low: int) -> None:
    if type(value) is not int or value < low:
        raise UsageError(f"judge: {name} is a whole number from {low} on, got {value!r}")


def _check_sampling(sampling: Any) -> None:
    if not isinstance(sampling, Mapping):
        raise UsageError(f"judge: sampling is a mapping, got {sampling!r:.100}")
    ours = {"model", "messages", "response_format", "stream", "n"} & set(sampling)
    if ours:
        raise UsageError(f"judge: sampling cannot set {sorted(ours)[0]!r}, which the judge sets")
