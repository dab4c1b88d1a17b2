"""Every dataset of reasoning-gym as an environment: ``envs.load("reasoning_gym:chain_sum")``.

**Tasks** are endless and seeded; see ``envs.generated`` for how training and held-out tasks are
kept apart. Other arguments go to the dataset's config (``min_terms=2``); ``composite`` takes
``datasets=[{"name": "chain_sum", "weight": 2, "config": {...}}, ...]``.

**The final answer** is what follows the last ``</think>`` (nothing, when a ``<think>`` is left
open), in there what stands in the last ``<answer>...</answer>`` if there is one, stripped. An empty
one is UNPARSEABLE, 0.

**The score** is the dataset's own scorer's, and CORRECT at exactly 1. Below 1 the value is 0 unless
``partial_credit=True``, and the scorer's number is kept as ``parts["scorer"]``. Partial credit is
off because most scorers give it for *containing* the right answer (answer length over text length)
and some for writing anything at all (0.01 to 0.05): a policy can climb both without solving a task.

**Guards.** Some scorers evaluate model text, and some give full marks for wrong answers: an answer
must pass ``envs.reasoning_guards`` first, or it is WRONG. The scorer then runs in a worker process
with limits on time and memory (``envs.reasoning_pool``): hanging is a TIMEOUT. A scorer that raises
on this answer but not on the gold one could not read the answer, which makes it UNPARSEABLE; when
it raises on the gold one, too, that is an ERROR.

**Gold answers.** Where an item has no single right answer, the example in its metadata is the
task's ``answer``; boxnet and rush_hour have none (``NO_GOLD``). Items whose gold answer is empty or
would not pass the guards are left out: about 1 in 40 of ``ab``, and those of
intermediate_integration whose "solution" is an unsolved integral.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envs.generated import GeneratedTasks
from envs.protocol import Task
from envs.reasoning_guards import refused
from envs.reasoning_pool import SCORES, TASKS
from envs.single_turn import SingleTurn, user
from envs.splitting import PERCENT
from rewards import Outcome, Score, UsageError, did_you_mean

ITEM_TIMEOUT_S = 60.0
SCORER_TIMEOUT_S = 10.0
NO_GOLD = frozenset({"boxnet", "rush_hour"})


def final_answer(completion: str) -> str:
    """The final answer of a completion, stripped; "" when there is none."""
    opened, closed = completion.rfind("<think>"), completion.rfind("</think>")
    if opened > closed:
        return ""
    text = completion[closed + len("</think>") :] if closed >= 0 else completion
    before, tag, _ = text.rpartition("</answer>")
    if tag and "<answer>" in before:
        text = before.rpartition("<answer>")[2]
    return text.strip()


@dataclass(frozen=True, eq=False)  # its config has no hash
class ReasoningScorer:
    """The reward of one dataset; asks for the columns its tasks carry."""

    dataset: str
    config: Mapping[str, Any]
    partial_credit: bool = False
    name: str = "reasoning_gym"

    def __call__(
        self, completion: str, answer: Any, question: str, metadata: Mapping[str, Any]
    ) -> Score:
        said = final_answer(completion)
        if not said:
            return Score(0.0, Outcome.UNPARSEABLE)
        if refused(_source(self.dataset, metadata), said, answer, metadata):
            return Score(0.0, Outcome.WRONG, detail="refused before the scorer saw it")
        entry = {"question": question, "answer": answer, "metadata": metadata}
        value = SCORES.call(
            "score", self.dataset, dict(self.config), said, entry, deadline_s=SCORER_TIMEOUT_S
        )
        if value is None or not math.isfinite(value):
            return Score(0.0, Outcome.UNPARSEABLE, detail="the scorer could not read it")
        parts = {"scorer": value}
        if value == 1.0:
            return Score(1.0, Outcome.CORRECT, parts)
        partial = min(max(value, 0.0), 1.0) if self.partial_credit else 0.0
        return Score(partial, Outcome.WRONG, parts)


def dataset_names() -> list[str]:
    """All datasets that ``envs.load("reasoning_gym:<name>")`` knows."""
    described: dict[str, list[str]] = TASKS.call("describe", deadline_s=ITEM_TIMEOUT_S)
    return sorted(described)


def reasoning_gym(
    dataset: str,
    *,
    seed: int = 0,
    held_out_percent: int = PERCENT,
    partial_credit: bool = False,
    system_prompt: str = "",
    **config: Any,
) -> SingleTurn:
    """The environment of one dataset. Raises UsageError for unknown or refused arguments."""
    _check(dataset, config)

    def make(stream: str, position: int) -> Task | None:
        item = TASKS.call("item", dataset, config, stream, position, deadline_s=ITEM_TIMEOUT_S)
        if item is None:
            return None
        question, answer, metadata = item
        if answer is not None and refused(_source(dataset, metadata), answer, answer, metadata):
            return None
        columns = {"question": question, "metadata": metadata}
        return Task(f"{dataset}:{stream}:{position}", (user(question),), answer, columns)

    return SingleTurn(
        name=f"reasoning_gym:{dataset}",
        tasks=GeneratedTasks(make, seed=seed, held_out_percent=held_out_percent),
        reward=ReasoningScorer(dataset, config, partial_credit),
        system_prompt=system_prompt,
    )


def _source(dataset: str, metadata: Mapping[str, Any]) -> str:
    """Which dataset an item is from: a composite's come from several."""
    return str(metadata["source_dataset"]) if dataset == "composite" else dataset


def _check(dataset: str, config: Mapping[str, Any]) -> None:
    described: dict[str, list[str]] = TASKS.call("describe", deadline_s=ITEM_TIMEOUT_S)
    if dataset not in described:
        raise UsageError(
            f"reasoning-gym has no dataset {dataset!r}.{did_you_mean(dataset, described)}"
        )
    accepted = described[dataset]
    for name in config:
        if name == "size":
            raise UsageError(f"{dataset}: size has no meaning here, the stream of tasks is endless")
        if name not in accepted:
            hint = did_you_mean(name, accepted) if accepted else ""
            all_of_them = ", ".join(accepted) or "none"
            raise UsageError(f"{dataset} has no argument {name!r}.{hint} Accepted: {all_of_them}.")
    try:
        TASKS.call("check", dataset, dict(config), deadline_s=ITEM_TIMEOUT_S)
    except UsageError as error:
        raise UsageError(
            f"{dataset} refuses {dict(config)}: {error}. Accepted arguments: {', '.join(accepted)}"
        ) from error
