"""Scores an answer step by step with a token-classification checkpoint (a process reward model).

The completion is split at ``separator`` and blank steps are dropped; each step is written back with
``mark`` behind it, the last one too, which is how such models are trained (TRL's PRMTrainer: the
separator itself; others: a token of its own such as ``<extra_0>``). A step's score is read at the
last token of its mark: the probability of ``label``, by softmax, or by sigmoid with a single label.

    value = min (default), product, last or mean of the steps' probabilities

min and product bind an answer to its weakest step. All four are in ``parts``, the steps in
``detail``.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from rewards.errors import UsageError, did_you_mean
from rewards.model.batching import MicroBatcher
from rewards.model.checkpoint import TOKEN, Checkpoint, LocalSettings, finite
from rewards.model.failures import Unjudged, no_score
from rewards.model.reading import Message, Reader, conversation, settings_of
from rewards.model.reward import outcome
from rewards.registry import register
from rewards.score import Outcome, Score

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "last": lambda steps: steps[-1],
    "mean": fmean,
}


@dataclass(frozen=True, slots=True)
class MarkedSteps:
    """Token ids, and where the steps end."""

    ids: list[int]  # [T]
    ends: list[int]  # one position in ids per step

    def __len__(self) -> int:
        return len(self.ids)


class ProcessReward:
    """A reward from per-step probabilities; used like any reward. Made by ``load_process``.

    UNPARSEABLE, 0, for a completion without a step. Can it be hacked? ``last`` and ``mean`` by
    padding with safe, empty steps ("let me check this again"); ``min`` and ``product`` by writing
    one step only, or by hiding a doubtful inference inside a long step. Watch the number of steps.
    """

    required_columns: frozenset[str] = frozenset()

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        settings: LocalSettings,
        *,
        marks: tuple[str, str],
        aggregate: str,
        threshold: float | None,
    ) -> None:
        self.name, self.threshold = name, threshold
        self.counts: Counter[str] = Counter()
        self._separator, self._mark = marks
        self._aggregate, self._checkpoint = aggregate, checkpoint
        self._batcher: MicroBatcher[Sequence[Message], MarkedSteps, list[float]] = MicroBatcher(
            self._marked,
            self._probabilities,
            token_budget=settings.token_budget,
            wait_s=settings.wait_s,
        )

    async def __call__(
        self, prompt: str, completion: str, messages: Sequence[Message] = ()
    ) -> Score:
        if not self._steps(completion):
            self.counts["without_steps"] += 1
            return Score(0.0, Outcome.UNPARSEABLE, {"steps": 0.0}, "no step")
        try:
            steps = await self._batcher.submit(conversation(prompt, completion, messages))
            for probability in steps:
                finite(probability)
        except Exception as error:  # noqa: BLE001  boundary: model text meets tokenizer and device
            self.counts["unjudged"] += 1
            return no_score(error, self.name)
        self.counts["scored"] += 1
        parts = {name: aggregate(steps) for name, aggregate in AGGREGATES.items()}
        value = parts[self._aggregate]
        parts["steps"] = float(len(steps))
        detail = json.dumps([round(step, 6) for step in steps])
        return Score(value, outcome(value, self.threshold), parts, detail)

    def _steps(self, completion: str) -> list[str]:
        return split_steps(completion, self._separator)

    def _marked(self, messages: Sequence[Message]) -> MarkedSteps:
        steps = self._steps(str(messages[-1]["content"]))
        own_mark = self._mark != self._separator
        return mark_steps(self._checkpoint.reader, messages, steps, self._mark, own_mark)

    def _probabilities(self, rows: list[MarkedSteps]) -> list[list[float]]:
        logits = self._checkpoint.logits([row.ids for row in rows])
        if self._checkpoint.labels == 1:
            good = logits[:, :, 0].sigmoid()
        else:
            good = logits.softmax(-1)[:, :, self._checkpoint.label]
        return [good[i, row.ends].tolist() for i, row in enumerate(rows)]


@register("process_reward_model", factory=True)
def load_process(
    path: str | Path,
    *,
    separator: str = "\n\n",
    mark: str = "",
    aggregate: str = "min",
    threshold: float | None = None,
    **options: Any,
) -> ProcessReward:
    """A process reward model from a token-classification checkpoint; ``mark`` empty: the separator.

    ``threshold`` is on the aggregated probability. The other options are those of a checkpoint in
    ``rewards.model.load``. Raises UsageError for a wrong option or checkpoint, or a mark that is
    not one token of the model.
    """
    if aggregate not in AGGREGATES:
        raise UsageError(f"aggregate = {aggregate!r}.{did_you_mean(aggregate, AGGREGATES)}")
    if not separator:
        raise UsageError("separator is empty: a completion can't be split into steps by it")
    name = str(options.pop("name", "") or Path(path).name)
    settings = settings_of(LocalSettings, options)
    if settings.too_long != "error" or settings.eos not in ("auto", "keep"):
        raise UsageError("a process reward model has no too_long or eos: it needs every step")
    checkpoint = Checkpoint(path, TOKEN, settings)
    if mark and mark != separator:
        ids = checkpoint.reader.tokenizer(mark, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UsageError(f"mark = {mark!r} is {len(ids)} tokens of {path}, not one")
    return ProcessReward(
        name,
        checkpoint,
        settings,
        marks=(separator, mark or separator),
        aggregate=aggregate,
        threshold=threshold,
    )


def split_steps(completion: str, separator: str) -> list[str]:
    """The steps of a completion; blank ones are none."""
    return [step for step in completion.split(separator) if step.strip()]


def mark_steps(
    reader: Reader, messages: Sequence[Message], steps: Sequence[str], mark: str, own_mark: bool
) -> MarkedSteps:
    """Tokens of the conversation whose last message is ``steps``, each with ``mark`` behind it.

    ``own_mark``: the mark is no separator that may stand in the text, so one that the model wrote
    itself is broken up. Raises Unjudged.
    """
    if own_mark:
        steps = [step.replace(mark, f"{mark[0]} {mark[1:]}") for step in steps]
    safe, _ = reader.defused([*messages[:-1], *({"step": step} for step in steps)])
    said, steps = safe[: len(messages) - 1], [m["step"] for m in safe[len(messages) - 1 :]]
    body = "".join(step + mark for step in steps)
    text = reader.render([*said, {**messages[-1], "content": body}])
    first, last = _span(body, text)
    encoded = reader.encode(text, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    if len(ids) > reader.window:
        raise Unjudged(f"{len(ids)} tokens are over the window of {reader.window}")
    written = accumulate(len(step) + len(mark) for step in steps)
    chars = [min(first + end - 1, last) for end in written]
    return MarkedSteps(ids, _tokens_at(encoded["offset_mapping"], chars))


def _span(body: str, text: str) -> tuple[int, int]:
    """Where the answer's first character is (or would be) in rendered text, and its last one.

    A template may take blanks off either end. Raises Unjudged where it does more.
    """
    for kept in (body, body.rstrip(), body.lstrip(), body.strip()):
        start = text.rfind(kept)
        if start >= 0:
            missing = 0 if body.startswith(kept) else len(body) - len(body.lstrip())
            return start - missing, start + len(kept) - 1
    raise Unjudged("the chat template rewrites the answer, so its steps can't be found")


def _tokens_at(offsets: Sequence[tuple[int, int]], chars: Sequence[int]) -> list[int]:
    """For each character the last token that begins at or before it.

    Special tokens that the tokenizer put around the text stand for none of it: (0, 0).
    """
    tokens = [i for i, (start, end) in enumerate(offsets) if end > start]
    starts = [offsets[i][0] for i in tokens]
    return [tokens[bisect_right(starts, char) - 1] for char in chars]
