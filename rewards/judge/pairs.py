"""Decides how labelled pairs are read from a file; a row that is none is an error that names it."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UsageError

_TURN = "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of a prompt; people preferred ``chosen``, or neither with ``tie``."""

    prompt: str
    chosen: str
    rejected: str
    tie: bool = False
    answer: object = None  # a gold answer, for a rubric that shows it


def read_pairs(path: Path, limit: int | None = None) -> list[Pair]:
    """The first ``limit`` pairs of a JSON lines file. Raises UsageError naming the line."""
    pairs: list[Pair] = []
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and len(pairs) >= limit:
                    break
                if line.strip():
                    pairs.append(_pair(line, f"{path}:{number}"))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"the pairs in {path} cannot be read: {error}") from None
    if not pairs:
        raise UsageError(f"{path} holds no pair")
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
        raise UsageError(f"{where}: a pair has chosen and rejected, and prompt; got {line[:100]!r}")
    tie = row.get("tie", False)
    if not isinstance(tie, bool):
        raise UsageError(f"{where}: tie is true or false, got {tie!r}")
    prompt, chosen, rejected = _texts(row, where)
    if not prompt.strip() or not (chosen.strip() or rejected.strip()):
        raise UsageError(f"{where}: the prompt, or both completions, are empty")
    return Pair(prompt, chosen, rejected, tie, row.get("answer"))


def _texts(row: dict[str, Any], where: str) -> tuple[str, str, str]:
    """Prompt, chosen, rejected as text, from text or from chat messages."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list) and chosen and rejected:
        prompt = row.get("prompt", chosen[:-1])
        prompt = prompt if isinstance(prompt, str) else _dialogue(prompt, where)
        return prompt, _dialogue(chosen[-1:], where, False), _dialogue(rejected[-1:], where, False)
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise UsageError(f"{where}: chosen and rejected are both text, or both lists of messages")
    if "prompt" in row:
        given = row["prompt"]
        return given if isinstance(given, str) else _dialogue(given, where), chosen, rejected
    start = _common(chosen, rejected).rfind(_TURN)
    if start < 0:
        raise UsageError(f"{where}: no prompt, and chosen and rejected are not one dialogue")
    end = start + len(_TURN)
    return chosen[:start].strip(), chosen[end:].strip(), rejected[end:].strip()


def _common(a: str, b: str) -> str:
    """What two texts begin with alike."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return a[: min(len(a), len(b)) if same is None else same]


def _dialogue(messages: Any, where: str, roles: bool = True) -> str:
    try:
        shown = [f"{m['role']}: {m['content']}" if roles else str(m["content"]) for m in messages]
    except (TypeError, KeyError):
        got = f"{messages!r:.100}"
        raise UsageError(f"{where}: a message has role and content, got {got}") from None
    return "\n\n".join(shown)
