"""Decides the score of a response: reads both answers, goes through the tiers, names the outcome.

=====================================================  ==========================================
the response                                           becomes
=====================================================  ==========================================
holds an answer equal to the gold one                  1, CORRECT
holds another answer                                   0, WRONG
holds no final answer, or one beyond a bound            0, UNPARSEABLE
needs longer than the deadline of a worker              None, TIMEOUT
kills its worker                                       None, ERROR
=====================================================  ==========================================

A gold that is empty, or beyond a bound, raises UsageError: it could match nothing, or anything.

Can it be hacked? Only the final answer is seen: right by luck or after wrong work scores 1. A
gold with few possible values (yes or no, a letter of choice) can be guessed.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from rewards.errors import UsageError
from rewards.math.answer import final_answer
from rewards.math.cursor import Node
from rewards.math.grammar import parse
from rewards.math.limits import MAX_CHARS, TooLarge, Unreadable
from rewards.math.normal import choice, decimal_comma, normalised, number, without_unit
from rewards.math.structure import Comparison
from rewards.math.units import unit_of
from rewards.registry import register
from rewards.score import Outcome, Score
from rewards.workers import WorkerDied, WorkerPool, WorkerRaised

TIMEOUT_S = 1.5
MEMORY_BYTES = 1 << 30
SHOWN_CHARS = 80

Verdict = bool | None

_pool_lock = threading.Lock()
_pool: WorkerPool | None = None


def workers() -> WorkerPool:
    """The worker processes of this program, one for each core."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = WorkerPool("rewards.math.symbolic:decide", memory_bytes=MEMORY_BYTES)
        return _pool


def score(
    response: str, gold: object, *, bare: bool = False, timeout_s: float = TIMEOUT_S
) -> Score:
    """Judge one response. Blocks; a response that needs a worker takes ``timeout_s`` at most in it.

    ``bare``: the response is a labelled answer, not the output of a model in training (see
    ``rewards.math.answer``). Raises UsageError for an unusable gold.
    """
    question = _Question.of(response, gold, bare)
    decided = question.decide_here()
    if decided is None:
        decided = question.decide_by_worker(timeout_s)
    return decided


def score_batch(
    responses: Sequence[str],
    golds: Sequence[object],
    *,
    bare: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> list[Score]:
    """Judge many responses; those that need a worker share all of them."""
    if len(responses) != len(golds):
        raise UsageError(f"{len(responses)} responses and {len(golds)} golds: one gold for each")
    questions = [_Question.of(*pair, bare) for pair in zip(responses, golds, strict=True)]
    scores = [question.decide_here() for question in questions]
    open_ = [i for i, decided in enumerate(scores) if decided is None]
    if open_:
        with ThreadPoolExecutor(min(len(open_), workers().size)) as threads:
            judged = threads.map(lambda i: questions[i].decide_by_worker(timeout_s), open_)
            for i, decided in zip(open_, judged, strict=True):
                scores[i] = decided
    return [one for one in scores if one is not None]


def check_gold(fields: Mapping[str, Any]) -> None:
    """Raises ValueError for a row whose gold answer could match nothing."""
    if "answer" in fields:
        try:
            gold_answer(fields["answer"])
        except UsageError as error:
            raise ValueError(str(error)) from error  # the registry adds the reward's name


@register("math", check=check_gold)
async def math(completion: str, answer: object) -> Score:
    """1 when the completion's final answer is equal to the gold one, by the policy of docs/math.md.

    Waits for a worker beside the event loop. How it can be hacked: see the module.
    """
    question = _Question.of(completion, answer, False)
    decided = question.decide_here()
    if decided is not None:
        return decided
    try:
        verdict = await workers().acall(question.payload, timeout_s=TIMEOUT_S)
    except (TimeoutError, WorkerDied, WorkerRaised) as error:
        return question.failed(error)
    return question.judged(*verdict)


def gold_answer(gold: object) -> str:
    """The answer in a gold text. Raises UsageError when there is none or it exceeds a bound."""
    text = str(gold) if gold is not None else ""
    found = _gold_answer(text)
    if found is None:
        raise UsageError(
            f"the gold answer is empty: {text[-SHOWN_CHARS:]!r}; it would match nothing"
        )
    return found


@lru_cache(maxsize=4096)
def _gold_answer(text: str) -> str | None:
    if number(text) is not None:
        return text
    found = final_answer(text, bare=True) if text.strip() else None
    if found is not None and len(found) > MAX_CHARS:
        raise UsageError(f"the gold answer is longer than {MAX_CHARS} characters")
    return found if found and normalised(found) else None


@lru_cache(maxsize=4096)
def _gold_node(answer: str, group: bool) -> Node | None:
    return _node(answer, group)


def _node(answer: str, group: bool = True) -> Node | None:
    """The parsed answer, or None for what the grammar does not have. Raises TooLarge."""
    try:
        return parse(decimal_comma(answer), group)
    except TooLarge:
        raise
    except Unreadable:
        return None


class _Question:
    """One response and its gold, on their way to a verdict."""

    def __init__(self, gold: str, pred: str | None) -> None:
        self.gold = gold
        self.pred = pred
        self.payload = (gold, pred)

    @classmethod
    def of(cls, response: str, gold: object, bare: bool) -> _Question:
        if not isinstance(response, str):
            raise UsageError(f"a response is text, got {type(response).__name__}")
        return cls(gold_answer(gold), final_answer(response, bare=bare))

    def decide_here(self) -> Score | None:
        """The score, or None when only a worker can tell."""
        if self.pred is None:
            return Score(0.0, Outcome.UNPARSEABLE, detail="no final answer")
        if self.pred == self.gold:
            return self.judged(True, "string")
        if len(self.pred) > MAX_CHARS:
            return self._refused(TooLarge(f"longer than {MAX_CHARS} characters"))
        if (value := number(self.pred)) is not None and (gold := number(self.gold)) is not None:
            return self.judged(value == gold, "exact")
        if normalised(self.pred) == normalised(self.gold):
            return self.judged(True, "string")
        try:
            verdict, tier = self._compare()
        except (TooLarge, RecursionError) as error:
            return self._refused(error)
        except Exception as error:  # noqa: BLE001  boundary: model text must not end a run
            return Score(None, Outcome.ERROR, detail=f"{type(error).__name__}: {error}"[:500])
        return None if verdict is None else self.judged(verdict, tier)

    def _compare(self) -> tuple[Verdict, str]:
        assert self.pred is not None
        letter, chosen = choice(self.gold), choice(self.pred)
        if letter and chosen:
            return letter.upper() == chosen.upper(), "structure"
        for group in (True, False):
            gold, pred = _gold_node(self.gold, group), _node(self.pred, group)
            if gold is None or pred is None:
                return self._unread(gold, pred)
            comparison = Comparison()
            verdict = comparison.equal(gold, pred)
            if verdict is not False:
                return verdict, comparison.tier
            if "," not in self.gold + self.pred:
                break
        named = [bool(node and node[0] == "unit" and unit_of(node[2])) for node in (gold, pred)]
        for mine, theirs in without_unit(self.gold, self.pred, *named):
            gold, pred = _node(mine), _node(theirs)
            if gold is not None and pred is not None and Comparison().equal(gold, pred):
                return True, "structure"
        return False, comparison.tier

    def _unread(self, gold: Node | None, pred: Node | None) -> tuple[Verdict, str]:
        """One side is in no notation that the grammar has: sympy's, or nothing."""
        from rewards.math.symbolic import is_for_sympy

        assert self.pred is not None
        if gold is not None and gold[0] == "text":
            return False, "structure"
        if is_for_sympy(self.gold, self.pred):
            return None, "sympy"
        return False, "string"

    def decide_by_worker(self, timeout_s: float) -> Score:
        try:
            return self.judged(*workers().call(self.payload, timeout_s=timeout_s))
        except (TimeoutError, WorkerDied, WorkerRaised) as error:
            return self.failed(error)

    def judged(self, verdict: Verdict, tier: str) -> Score:
        if verdict:
            return Score(1.0, Outcome.CORRECT, detail=tier)
        found = (self.pred or "")[:SHOWN_CHARS]
        why = "is not" if verdict is False else "was not shown to be"
        return Score(
            0.0, Outcome.WRONG, detail=f"{tier}: {found!r} {why} {self.gold[:SHOWN_CHARS]!r}"
        )

    def failed(self, error: Exception) -> Score:
        """The score when the worker gave no verdict."""
        if isinstance(error, WorkerRaised) and str(error).startswith("TooLarge"):
            return self._refused(error)
        if isinstance(error, WorkerRaised) and "RecursionError" in str(error):
            return self._refused(error)
        if isinstance(error, TimeoutError):
            return Score(None, Outcome.TIMEOUT, detail=str(error))
        return Score(None, Outcome.ERROR, detail=str(error)[:500])

    def _refused(self, error: Exception) -> Score:
        return Score(0.0, Outcome.UNPARSEABLE, detail=f"beyond a limit: {error}")
