"""Preference data: rows of several public shapes -> pairs of answers to one prompt, checked.

    prompt + chosen + rejected           text or messages; ``margin`` (how much better) and ``tie``
                                         (neither is better) may stand beside them
    chosen + rejected                    two conversations that differ in their last answer:
                                         messages, or text with Human: and Assistant: turns
    prompt + answers, best first         a ranking, all pairs of it; ``ranks`` beside it says places
                                         (1 is best), and answers in one place are ties
    prompt + completion + label          one answer, good or bad (``read_judged``)

A row that no pair can be made of is an error that names it, or is left out and counted: two equal
answers, an empty one, dialogues that part before their last answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from posttrain.errors import UsageError

Message = dict[str, Any]
T = TypeVar("T")

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ \t]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two different answers of the assistant to one conversation; ``chosen`` is the better one."""

    row: int  # where it stands in the data, from 1
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    margin: float = 0.0  # by how much it is better, in units of the reward
    tie: bool = False  # neither is better


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer, said to be good or bad."""

    row: int
    prompt: tuple[Message, ...]
    answer: Message
    good: bool


class _BadRow(ValueError):
    """Why a row is refused: ``kind`` is what it is counted under."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def read_pairs(
    rows: Iterable[Any], name: str, *, drop_bad: bool = False
) -> tuple[list[Pair], Counter[str]]:
    """All pairs, and how many rows were left out for which reason.

    Raises UsageError for the first bad row, unless they are to be dropped, and when none is left.
    """
    return _read(rows, name, _pairs_of, "pair of answers", drop_bad)


def read_judged(
    rows: Iterable[Any], name: str, *, drop_bad: bool = False
) -> tuple[list[Judged], Counter[str]]:
    """Single answers with their verdicts; of a pair both, of a tie none. As ``read_pairs``."""
    return _read(rows, name, _judged_of, "judged answer", drop_bad)


def dialogue(text: str) -> list[Message]:
    """``"\\n\\nHuman: Hi\\n\\nAssistant: Hello"`` as messages, blanks around a turn taken off.

    Raises ValueError for text that does not begin with a turn.
    """
    starts = list(_TURN.finditer(text))
    if not starts or starts[0].start() != 0:
        raise ValueError("text without a prompt must be turns of 'Human:' and 'Assistant:'")
    ends = [*(turn.start() for turn in starts[1:]), len(text)]
    return [
        {"role": _ROLES[turn[1]], "content": text[turn.end() : end].strip()}
        for turn, end in zip(starts, ends, strict=True)
    ]


def _read(
    rows: Iterable[Any],
    name: str,
    parse: Callable[[Mapping[str, Any], int], Iterable[T]],
    what: str,
    drop_bad: bool,
) -> tuple[list[T], Counter[str]]:
    found: list[T] = []
    dropped: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        try:
            if not isinstance(row, Mapping):
                raise _BadRow("missing column", f"a row is a mapping, not {type(row).__name__}")
            # Arrow gives every row the columns of all: what is None was not there.
            given = {name: value for name, value in row.items() if value is not None}
            found += parse(given, number)
        except _BadRow as problem:
            if not drop_bad:
                raise UsageError(f"{name}, row {number}: {problem}") from problem
            dropped[problem.kind] += 1
    if not found:
        left_out = f" (left out: {dict(dropped)})" if dropped else ""
        raise UsageError(f"{name} holds no {what}{left_out}")
    return found, dropped


# one row


def _pairs_of(row: Mapping[str, Any], number: int) -> list[Pair]:
    if "answers" in row:
        return list(_ranked(row, number))
    _need(row, "chosen", "rejected")
    prompt, chosen, rejected = _sides(row)
    margin, tie = row.get("margin"), row.get("tie")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise _BadRow("bad margin", f"'margin' is a number, not {margin!r}")
    return [_pair(number, prompt, chosen, rejected, float(margin or 0.0), bool(tie))]


def _judged_of(row: Mapping[str, Any], number: int) -> list[Judged]:
    if "label" not in row:
        sides = (
            (pair, one, one is pair.chosen)
            for pair in _pairs_of(row, number)
            for one in (pair.chosen, pair.rejected)
            if not pair.tie
        )
        return [Judged(number, pair.prompt, one, good) for pair, one, good in sides]
    _need(row, "prompt", "completion")
    if not isinstance(row["label"], bool | int) or row["label"] not in (0, 1):
        raise _BadRow("bad label", f"'label' is true or false, not {row['label']!r}")
    prompt, answer = _prompt(row["prompt"]), _answer(row["completion"], "completion")
    _not_empty(answer, "completion")
    return [Judged(number, prompt, answer, bool(row["label"]))]


def _ranked(row: Mapping[str, Any], number: int) -> Iterator[Pair]:
    _need(row, "prompt", "answers")
    prompt = _prompt(row["prompt"])
    answers = [_answer(answer, "answers") for answer in _list(row["answers"], "answers")]
    ranks = _list(row.get("ranks", list(range(1, len(answers) + 1))), "ranks")
    if not all(isinstance(rank, int | float) for rank in ranks):
        raise _BadRow("bad ranking", f"'ranks' are numbers, not {ranks!r:.60}")
    if len(answers) < 2 or len(ranks) != len(answers):
        raise _BadRow(
            "bad ranking",
            f"a ranking needs at least two answers and a rank for each, got {len(answers)} answers "
            f"and {len(ranks)} ranks",
        )
    order = sorted(range(len(answers)), key=lambda i: ranks[i])
    for place, better in enumerate(order):
        for worse in order[place + 1 :]:
            tie = ranks[better] == ranks[worse]
            yield _pair(number, prompt, answers[better], answers[worse], 0.0, tie)


def _pair(
    row: int, prompt: tuple[Message, ...], chosen: Message, rejected: Message,
    margin: float, tie: bool,
) -> Pair:  # fmt: skip
    for answer, what in ((chosen, "chosen"), (rejected, "rejected")):
        _not_empty(answer, what)
    if chosen["content"] == rejected["content"]:
        raise _BadRow("equal answers", f"both answers are {chosen['content']!r:.60}")
    return Pair(row, prompt, chosen, rejected, margin, tie)


def _sides(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Message, Message]:
    """Prompt, better and worse answer, whether or not the prompt has a column of its own."""
    if "prompt" in row:
        better, worse = _answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected")
        return _prompt(row["prompt"]), better, worse
    chosen, rejected = (_conversation(row[name], name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise _BadRow(
            "different prompts", "'chosen' and 'rejected' differ before their last answer"
        )
    for conversation, name in ((chosen, "chosen"), (rejected, "rejected")):
        if conversation[-1]["role"] != "assistant" or len(conversation) < 2:
            raise _BadRow("no answer", f"{name!r} does not end in an answer of the assistant")
    return tuple(chosen[:-1]), chosen[-1], rejected[-1]


def _need(row: Mapping[str, Any], *names: str) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        columns = ", ".join(map(repr, missing))
        raise _BadRow("missing column", f"no {columns} (found: {sorted(row)})")


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    messages = tuple(_messages(value, "prompt"))
    if messages[-1]["role"] == "assistant":
        raise _BadRow("no answer", "'prompt' ends in an assistant's message, which is an answer")
    return messages


def _answer(value: Any, name: str) -> Message:
    """Text, or the one message of the assistant."""
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    messages = _messages([value] if isinstance(value, Mapping) else value, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise _BadRow("no answer", f"{name!r} must be text or one message of the assistant")
    return messages[0]


def _conversation(value: Any, name: str) -> list[Message]:
    if not isinstance(value, str):
        return _messages(value, name)
    try:
        return dialogue(value)
    except ValueError as error:
        raise _BadRow("no dialogue", f"{name!r}: {error}") from error


def _messages(value: Any, name: str) -> list[Message]:
    messages = _list(value, name)
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise _BadRow("bad message", f"{name!r}: every message needs a 'role' and a 'content'")
    return [dict(message) for message in messages]


def _list(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise _BadRow("bad message", f"{name!r} must be a list of at least one, got {value!r:.60}")
    return value


def _not_empty(answer: Message, name: str) -> None:
    if not str(answer["content"]).strip():
        raise _BadRow("empty answer", f"the answer in {name!r} is empty")
