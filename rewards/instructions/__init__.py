"""Rewards for instructions that a program can verify, in the style of IFEval (arXiv:2311.07911).

The 25 instructions of the paper, under its identifiers and with its settings, written from their
definitions (``rewards.instructions.wording`` and ``rewards.instructions.layout``). Where a
definition leaves room, the docstring of the kind says what was decided; sentences are counted by
rules and languages told by ``rewards.language``, so single answers can be judged differently than
by the paper's own program.

Strict is the answer (after the thinking) as it stands. Loose, as in the paper, is followed when any
of eight readings follows: the answer with or without its first line, its last line and its
asterisks, for models that begin with "Sure, here it is:".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.answer_text import answer_text
from rewards.instructions import layout, wording
from rewards.instructions.kinds import KINDS, kind, settings_of
from rewards.registry import register
from rewards.score import Outcome, Score

__all__ = ["KINDS", "ifeval", "instructions", "kind", "layout", "wording"]

MAX_CHARS = 200_000
Instruction = tuple[str, dict[str, Any]]


def _check_instructions(fields: Mapping[str, Any]) -> None:
    if "instructions" in fields:
        _read(fields["instructions"])


@register("instructions", settings=["loose", "partial"], check=_check_instructions)
def instructions(
    completion: str, instructions: Any, loose: bool = False, partial: bool = False
) -> Score:
    """1 when every instruction is followed; with ``partial`` the share of those that are.

    The column is a list of ``{"id": ..., "kwargs": {...}}``; ``parts`` has 1 or 0 under each
    identifier (``id#2`` for its second use). UNPARSEABLE, 0, for an empty answer.

    Can it be hacked? Yes, all of it: the form is verified and the content is not, so "word word
    word" has the right number of words, a keyword can stand anywhere, and an answer of dividers and
    brackets satisfies half of the kinds. Sum it with a reward for the content, or make it a gate.
    ``loose`` gives a model eight tries.
    """
    wanted = _read(instructions)
    text = answer_text(completion)
    if text is None or len(text) > MAX_CHARS:
        why = "" if text is None else f"longer than {MAX_CHARS} characters"
        return Score(0.0, Outcome.UNPARSEABLE, detail=why)
    readings = _loose_readings(text) if loose else [text]
    parts: dict[str, float] = {}
    for name, settings in wanted:
        used = sum(1 for part in parts if part.partition("#")[0] == name)
        followed = any(KINDS[name](reading, **settings) for reading in readings)
        parts[f"{name}#{used + 1}" if used else name] = float(followed)
    share = sum(parts.values()) / len(parts)
    if share == 1.0:
        return Score(1.0, Outcome.CORRECT, parts)
    missed = ", ".join(name for name, followed in parts.items() if not followed)
    return Score(share if partial else 0.0, Outcome.WRONG, parts, f"not followed: {missed}")


def _check_ifeval(fields: Mapping[str, Any]) -> None:
    if {"instruction_id_list", "kwargs"} <= fields.keys():
        _read(_paired(fields["instruction_id_list"], fields["kwargs"]))


@register("ifeval", settings=["loose", "partial"], check=_check_ifeval)
def ifeval(
    completion: str,
    instruction_id_list: Sequence[str],
    kwargs: Sequence[Mapping[str, Any] | None],
    loose: bool = False,
    partial: bool = False,
) -> Score:
    """``instructions`` for data with the columns of the IFEval data set: identifiers, settings.

    Can it be hacked? As ``instructions`` can.
    """
    return instructions(completion, _paired(instruction_id_list, kwargs), loose, partial)


def _paired(names: Any, settings: Any) -> list[dict[str, Any]]:
    if not isinstance(names, Sequence) or not isinstance(settings, Sequence):
        raise ValueError("instruction_id_list and kwargs must be lists")
    if len(names) != len(settings):
        raise ValueError(f"{len(names)} instructions and {len(settings)} kwargs")
    return [{"id": name, "kwargs": one} for name, one in zip(names, settings, strict=True)]


def _read(given: Any) -> list[Instruction]:
    """The instructions of a row, checked. Raises ValueError."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"instructions must be a list that is not empty, got {given!r:.80}")
    found = []
    for one in given:
        if not isinstance(one, Mapping) or "id" not in one:
            shape = '{"id": ..., "kwargs": {...}}'
            raise ValueError(f"an instruction must be {shape}, got {one!r:.80}")
        found.append((one["id"], settings_of(one["id"], one.get("kwargs"))))
    return found


def _loose_readings(text: str) -> list[str]:
    """The eight readings, without those that are empty."""
    lines = text.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    readings = ["\n".join(one).strip() for one in cut]
    readings += [reading.replace("*", "") for reading in readings]
    return [reading for reading in readings if reading]
