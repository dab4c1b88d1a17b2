"""Decides what a judge makes of answers: a grade by a rubric, the better of two, a ranking.

What is judged is the text after the last ``</think>``. A completion that is empty, or ends while
it thinks, has nothing to grade: UNPARSEABLE, 0, and no call. A judge that gives no verdict, for
whatever reason, leaves the sample unjudged: value None, ERROR or TIMEOUT, never a grade.

How it can be hacked: by text that the judge likes. Frames, keys and strict verdicts keep an answer
from *forging* a verdict; nothing here keeps it from *persuading* a judge, by flattery, length,
confident tone, or an order that a weak judge obeys. Watch ``posttrain audit judge``, the length of
answers over a run, and the parts hidden_chars and special_tokens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.calling import Case
from rewards.errors import UsageError, did_you_mean
from rewards.judge.asking import COUNTS, Asker
from rewards.judge.failures import Failed
from rewards.judge.prompts import Question, comparing_task, grading_task, ranking_task
from rewards.judge.ranking import AGGREGATES, points_of_ranks
from rewards.judge.rubric import Rubric, read_rubric
from rewards.judge.untrusted import Shown, show
from rewards.judge.verdicts import Verdict
from rewards.score import Outcome, Score

DETAIL_CHARS = 2000
Prompt = str | Sequence[Mapping[str, Any]]  # a question, or the messages before the answer
_SIDES = ("first", "second", "tie")
_TAKEN = {"a": 1.0, "tie": 0.5, "b": 0.0}
_AS_A_FIRST = {"first": "a", "second": "b", "tie": "tie"}
_AS_B_FIRST = {"first": "b", "second": "a", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two verdicts, with a first and with b first, say of a pair.

    ``winner`` is a tie when they disagree, and None when one of them ``failed``.
    """

    winner: str | None  # "a" | "b" | "tie"
    verdicts: tuple[str | None, str | None]  # the winner with a first, and with b first
    reason: str = ""  # in the judge's words
    failed: Failed | None = None

    @property
    def value(self) -> float | None:
        """What a took: 1, 0, or 1/2 for a tie."""
        return None if self.winner is None else _TAKEN[self.winner]

    @property
    def flipped(self) -> bool:
        """Whether the order changed the verdict."""
        return None not in self.verdicts and self.verdicts[0] != self.verdicts[1]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Values in [0, 1] of answers to one question, best highest; None where not judged."""

    values: tuple[float | None, ...]
    flipped: int = 0  # pairs on which the order changed the verdict
    failed: Failed | None = None  # why some have no value: the first failure


class Judge:
    """A reward that asks a model; made by ``rewards.judge.load``.

    Called with a prompt and a completion it grades by the rubric. ``compare`` and ``rank`` look at
    several completions of one prompt. Nothing here raises for what the model or the server does.
    """

    def __init__(self, asker: Asker, rubric: Rubric) -> None:
        self.asker, self.rubric = asker, rubric
        self.name = f"judge:{asker.model}"
        needed = {"answer"} if rubric.reference else set()
        column = asker.settings.rubric_column
        self.required_columns = frozenset(needed | ({column} if column else set()))

    def __repr__(self) -> str:
        names = ", ".join(one.name for one in self.rubric.criteria)
        return f"<judge {self.asker.model!r} at {self.asker.url}: {names}>"

    async def __call__(
        self, prompt: str, completion: str, answer: object = None, **columns: object
    ) -> Score:
        """Grade one completion: the weighted mean of the criteria, each of them a part."""
        messages: Any = columns.pop("messages", ())
        case = Case(prompt, completion, answer, messages, columns)
        return await self.judge_case(case, self.asker.settings.timeout_s)

    async def judge_case(self, case: Case, timeout_s: float) -> Score:
        """The same, for ``rewards.apply``: its deadline starts when the verdict has its place."""
        rubric = self._rubric_of(case.columns)
        asked = self.shown_prompt(case.prompt, case.messages)
        given = self._given(asked, case.answer, rubric)
        shown = self.shown_answer(case.completion)
        parts = _counts(shown)
        if not shown.text:
            return Score(0.0, Outcome.UNPARSEABLE, parts, "no text, or none behind the thinking")
        question = Question(grading_task(rubric), {**given, "answer": shown}, rubric.fields)
        try:
            answered = await self.asker.verdict(question, timeout_s)
        except Failed as failed:
            return failed.score(self.name, parts)
        grades = rubric.parts(answered.verdict.levels)
        value = rubric.value(grades)
        outcome = Outcome.CORRECT if value >= rubric.pass_at else Outcome.WRONG
        parts = grades | parts | {"asks": float(answered.asks)}
        return Score(value, outcome, parts, answered.verdict.reason[:DETAIL_CHARS])

    async def compare(
        self, prompt: Prompt, a: str, b: str, answer: object = None, *, repeat: int = 0
    ) -> Comparison:
        """The better of two completions, asked in both orders; disagreement is a tie.

        Costs two verdicts; none for equal texts (a tie) and where a text is empty (it loses).
        ``repeat`` asks anew instead of reading the cache.
        """
        first, second = self.shown_answer(a), self.shown_answer(b)
        plain = _plain_winner(first, second)
        if plain:
            return Comparison(plain, (plain, plain), "the same text, or none")
        given = self._given(prompt, answer, self.rubric)
        forwards, backwards = await asyncio.gather(
            self._try(self._pair(given, first, second, repeat)),
            self._try(self._pair(given, second, first, repeat)),
        )
        return _comparison(forwards, backwards)

    async def rank(
        self,
        prompt: Prompt,
        completions: Sequence[str],
        answer: object = None,
        *,
        method: str = "pairs",
        aggregate: str = "copeland",
    ) -> Ranking:
        """Values of K completions of one prompt; ``rewards.judge.ranking`` says what they mean.

        ``method`` "pairs" compares each pair in both orders, K (K - 1) verdicts; "list" shows all
        at once, in the given order and in its reverse, 2 verdicts.
        """
        check_ranking(method, aggregate)
        if len(completions) < 2:
            raise UsageError(f"a ranking needs two completions, got {len(completions)}")
        if method == "pairs":
            points, flipped, failed = await self._all_pairs(prompt, completions, answer)
        else:
            points, flipped, failed = await self._lists(prompt, completions, answer)
        return Ranking(tuple(AGGREGATES[aggregate](len(completions), points)), flipped, failed)

    def check_row(self, fields: Mapping[str, Any]) -> None:
        """Raises UsageError for a row that can never be judged: no reference, a broken rubric."""
        column = self.asker.settings.rubric_column
        rubric = self._rubric_of(fields) if column in fields else self.rubric
        if "answer" in fields:
            self._given("", fields["answer"], rubric)

    def shown_answer(self, completion: str) -> Shown:
        """A completion as the judge sees it; its text is empty when there is none to judge."""
        shown = self._show(final_text(completion))
        return shown if shown.text.strip() else replace(shown, text="")

    def shown_prompt(self, prompt: str, messages: Any) -> Prompt:
        """What the judge is shown as the prompt of a sample: see the setting ``conversation``."""
        if not self.asker.settings.conversation or not isinstance(messages, list | tuple):
            return prompt
        written = [i for i, one in enumerate(messages) if one.get("role") == "assistant"]
        return (messages[: written[-1]] if written else messages) or prompt

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the judge can be used again."""
        await self.asker.close()

    def usage(self) -> dict[str, int]:
        """What was asked so far; tokens are those paid for, not those of cached replies."""
        counts = {name: self.asker.counts[name] for name in COUNTS}
        return {**counts, "tokens": self.asker.budget.spent}

    async def _all_pairs(
        self, prompt: Prompt, completions: Sequence[str], answer: object
    ) -> tuple[dict[tuple[int, int], float], int, Failed | None]:
        pairs = [(i, j) for j in range(len(completions)) for i in range(j)]
        found = await asyncio.gather(
            *(self.compare(prompt, completions[i], completions[j], answer) for i, j in pairs)
        )
        points = {
            pair: one.value for pair, one in zip(pairs, found, strict=True) if one.value is not None
        }
        failed = next((one.failed for one in found if one.failed is not None), None)
        return points, sum(one.flipped for one in found), failed

    async def _lists(
        self, prompt: Prompt, completions: Sequence[str], answer: object
    ) -> tuple[dict[tuple[int, int], float], int, Failed | None]:
        orders = [list(range(len(completions)))]
        orders.append(orders[0][::-1])
        given = self._given(prompt, answer, self.rubric)
        shown = [self.shown_answer(one) for one in completions]
        found = await asyncio.gather(
            *(self._try(self._list(given, [shown[i] for i in order])) for order in orders)
        )
        ranks = []
        for order, one in zip(orders, found, strict=True):
            if isinstance(one, Failed):
                return {}, 0, one
            places = [int(one.levels[f"answer-{n}"]) for n in range(1, len(order) + 1)]
            ranks.append(dict(zip(order, places, strict=True)))
        points, flipped = points_of_ranks(ranks)
        for i, j in points:  # what needs no judge is not left to one
            plain = _plain_winner(shown[i], shown[j])
            points[i, j] = _TAKEN[plain] if plain else points[i, j]
        return points, flipped, None

    def _pair(self, given: dict[str, Shown], first: Shown, second: Shown, repeat: int) -> Question:
        return Question(
            comparing_task(self.rubric),
            {**given, "first": first, "second": second},
            {"better": _SIDES},
            repeat,
            {"seed": repeat} if repeat else {},
        )

    def _list(self, given: dict[str, Shown], answers: list[Shown]) -> Question:
        names = [f"answer-{n}" for n in range(1, len(answers) + 1)]
        places = tuple(range(1, len(answers) + 1))
        material = {**given, **dict(zip(names, answers, strict=True))}
        return Question(
            ranking_task(self.rubric, len(answers)), material, dict.fromkeys(names, places)
        )

    async def _try(self, question: Question) -> Verdict | Failed:
        try:
            return (await self.asker.verdict(question)).verdict
        except Failed as failed:
            return failed

    def _given(self, prompt: Prompt, answer: object, rubric: Rubric) -> dict[str, Shown]:
        """What an answer is judged by: the question or the conversation, and the reference."""
        if isinstance(prompt, str):
            given = {"question": self._show(prompt)}
        else:  # a frame for each message, so that none can pose as another's
            given = {
                f"message-{n}-{_word(one['role'])}": self._show(_spoken(one))
                for n, one in enumerate(prompt, 1)
            }
        if rubric.reference:
            text = "" if answer is None else str(answer).strip()
            if not text:
                raise UsageError("the rubric needs a reference, and this row's answer is empty")
            given["reference"] = self._show(text)
        return given

    def _show(self, text: str) -> Shown:
        return show(text, self.asker.settings.max_chars)

    def _rubric_of(self, columns: Mapping[str, Any]) -> Rubric:
        column = self.asker.settings.rubric_column
        if not column:
            return self.rubric
        try:
            own = read_rubric(columns.get(column))
        except UsageError as error:
            raise UsageError(f"judge: column {column!r}: {error}") from None
        return replace(own, reference=own.reference or self.rubric.reference)


def _spoken(message: Mapping[str, Any]) -> str:
    """What a message says, the tools that it calls included."""
    calls = [f"calls {json.dumps(one.get('function'))}" for one in message.get("tool_calls") or ()]
    return "\n".join([str(message.get("content") or ""), *calls]).strip()


def final_text(completion: str) -> str:
    """What is behind the last closed thinking section; empty when the thinking never ends."""
    opened, closed = completion.rfind("<think>"), completion.rfind("</think>")
    if opened > closed:
        return ""
    return completion[closed + len("</think>") :].strip() if closed >= 0 else completion.strip()


def _word(role: object) -> str:
    return "".join(c for c in str(role) if c.isascii() and c.isalnum())[:20]


def _comparison(forwards: Verdict | Failed, backwards: Verdict | Failed) -> Comparison:
    verdicts: list[str | None] = []
    for one, names in ((forwards, _AS_A_FIRST), (backwards, _AS_B_FIRST)):
        verdicts.append(None if isinstance(one, Failed) else names[str(one.levels["better"])])
    failed = [one for one in (forwards, backwards) if isinstance(one, Failed)]
    if failed:
        return Comparison(None, (verdicts[0], verdicts[1]), failed=failed[0])
    winner = verdicts[0] if verdicts[0] == verdicts[1] else "tie"
    reasons = "\n".join(one.reason for one in (forwards, backwards) if isinstance(one, Verdict))
    return Comparison(winner, (verdicts[0], verdicts[1]), reasons[:DETAIL_CHARS])


def _counts(shown: Shown) -> dict[str, float]:
    return {
        "hidden_chars": float(shown.hidden),
        "special_tokens": float(shown.special),
        "truncated_chars": float(shown.truncated),
    }


def check_ranking(method: str, aggregate: str) -> None:
    """Raise UsageError for a way to rank that does not exist."""
    known: dict[str, tuple[str, Iterable[str]]] = {
        "method": (method, ("pairs", "list")),
        "aggregate": (aggregate, AGGREGATES),
    }
    for what, (given, names) in known.items():
        if given not in names:
            raise UsageError(f"a ranking has no {what} {given!r}.{did_you_mean(given, names)}")


def _plain_winner(a: Shown, b: Shown) -> str:
    """The winner where no judge is needed: equal texts tie, no text loses; else empty."""
    if a.text == b.text:
        return "tie"
    return "" if a.text and b.text else "a" if a.text else "b"
