"""Decides what the base model reads and fine-tuning shows it: text rendered from reasoning-gym.

Every problem is written in one of two styles of the same answer:

    direct     State the final answer ...: 4 - 1 - 7 =\n-4
    thinking   State the final answer ...: 4 - 1 - 7 =\n<think>4 - 1 = 3\n3 - 7 = -4</think>-4

Both appear in the corpus, as right ways to answer appear mixed on the web: the base then holds both
skills, fine-tuning sets how often each is used, and reinforcement learning can find out which pays.

Held-out problems never appear. Which ones those are is decided by the question's text alone, by the
rule in ``is_held_out``, so that any program can apply it without sharing a file or a seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Style = Literal["direct", "thinking"]
Row = dict[str, list[dict[str, str]]]  # {"messages": [{"role": ..., "content": ...}, ...]}

_BATCH = 4096  # problems drawn from one reasoning-gym data set before its seed moves on
_LONGEST_DROUGHT = 100_000  # problems in a row that may be held out before we give up


@dataclass(frozen=True, slots=True)
class Source:
    """One reasoning-gym data set, its own arguments, and how often it is drawn."""

    dataset: str
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its answer, and the worked steps where we know how to write them."""

    question: str
    answer: str
    steps: tuple[str, ...] = ()


CHAIN_SUM = Source(
    "chain_sum", args={"min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1}
)
TWO_TERMS = Source(
    "chain_sum", args={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
)


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """What to draw, and how to write it."""

    sources: tuple[Source, ...] = (CHAIN_SUM,)
    thinking_share: float = 0.7  # of the problems whose steps we know
    chat_share: float = 1.0  # of the documents; the others are plain text
    held_out_percent: int = 10

    def __post_init__(self) -> None:
        if not self.sources or any(source.weight <= 0 for source in self.sources):
            raise ValueError("a corpus needs at least one source, and every weight above zero")
        for name in ("thinking_share", "chat_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is between 0 and 1, not {getattr(self, name)}")
        if not 0 <= self.held_out_percent < 100:
            raise ValueError(f"held_out_percent must be in 0..99, not {self.held_out_percent}")


def is_held_out(question: str, percent: int = 10) -> bool:
    """Whether a question belongs to the held-out set: ``percent`` of all questions, by content."""
    digest = hashlib.blake2b(question.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < percent


def problems(source: Source, seed: int, held_out_percent: int) -> Iterator[Problem]:
    """An endless, seeded stream of one data set's problems, without the held-out ones."""
    import reasoning_gym

    skipped = 0
    seeds = random.Random(f"{seed}/{source.dataset}")
    while True:
        batch = reasoning_gym.create_dataset(
            source.dataset, size=_BATCH, seed=seeds.randrange(2**31), **source.args
        )
        for item in batch:
            if not is_held_out(item["question"], held_out_percent):
                skipped = 0
                yield _problem(item)
            elif (skipped := skipped + 1) > _LONGEST_DROUGHT:
                raise ValueError(f"{source.dataset} {dict(source.args)}: every problem is held out")


def _problem(item: Mapping[str, Any]) -> Problem:
    expression = item["metadata"].get("expression", "")
    steps = running_sums(expression) if item["metadata"]["source_dataset"] == "chain_sum" else ()
    return Problem(item["question"].strip(), str(item["answer"]), steps)


def running_sums(expression: str) -> tuple[str, ...]:
    """``"4 - 1 - 7"`` -> ``("4 - 1 = 3", "3 - 7 = -4")``: one two-term sum per step."""
    first, *rest = expression.split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        value = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total} {sign} {term} = {value}")
        total = value
    return tuple(steps)


def answer_text(problem: Problem, style: Style) -> str:
    """What the assistant says. A problem without known steps is always answered directly."""
    if style == "direct" or not problem.steps:
        return problem.answer
    return "<think>" + "\n".join(problem.steps) + "</think>" + problem.answer


def _drawn(settings: CorpusSettings, count: int, seed: int) -> Iterator[tuple[Problem, str]]:
    """``count`` problems with the assistant's answer, in an order that only the seed decides."""
    rng = random.Random(seed)
    weights = [source.weight for source in settings.sources]
    streams = [
        problems(source, seed + 1000 * index, settings.held_out_percent)
        for index, source in enumerate(settings.sources)
    ]
    for _ in range(count):
        problem = next(rng.choices(streams, weights)[0])
        style: Style = "thinking" if rng.random() < settings.thinking_share else "direct"
        yield problem, answer_text(problem, style)


def documents(settings: CorpusSettings, count: int, seed: int = 0) -> Iterator[str]:
    """Text for pretraining: a question, a line break, an answer; or the same as a conversation.

    A base that had seen no conversations lost much of its accuracy in 200 steps of fine-tuning, at
    each of three rates: its thinking answers went from 96 % right to 52 % at best.
    """
    rng = random.Random(f"{seed}/form")
    for problem, answer in _drawn(settings, count, seed):
        if rng.random() < settings.chat_share:
            yield chat_text(_row(problem, answer))
        else:
            yield f"{problem.question}\n{answer}"


def chat_text(row: Row) -> str:
    """A conversation as the chat template writes it, for when there is no tokenizer yet."""
    return "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        for message in row["messages"]
    )


def chat_rows(settings: CorpusSettings, count: int, seed: int = 0) -> list[Row]:
    """Conversations for supervised fine-tuning, in the same two styles."""
    return [_row(problem, answer) for problem, answer in _drawn(settings, count, seed)]


def _row(problem: Problem, answer: str) -> Row:
    question = {"role": "user", "content": problem.question}
    return {"messages": [question, {"role": "assistant", "content": answer}]}
