"""Self-Instruct: a few seed tasks become many, by a model that is shown some and writes more.

    round: prompts with seed and new tasks -> tasks with answers -> those unlike the pool join it

Self-Instruct (arXiv:2212.10560) with the one-request format of Alpaca: instruction, input and
output in one reply. A task joins the pool when its instruction has a ROUGE-L below ``rouge`` with
every instruction there. Since that depends on the order, the work goes in rounds: the prompts of a
round are a function of the pool at its start, are written down before they are asked, and what
came back joins the pool in the order of the prompts, however many ran at once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError
from data_gen.filters import Filter, Row, as_list
from data_gen.pipeline import BARRIER, Ask, Item
from data_gen.records import Record, content_hash, derived_seed
from data_gen.rouge import Pool
from data_gen.running import Common, Plan, run
from data_gen.store import Store
from data_gen.writing import (
    Writing,
    flaw,
    provenance,
    said,
    source_rows,
    user,
    whole,
)

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "self_instruct"
BARREN_ROUNDS = 5  # without a new task: the model cannot do it, or has no more
_ASK = """Come up with a set of {total} diverse tasks for a language model.
- They differ in verb, subject and kind: open questions, rewriting, classification, reasoning, code.
- A language model can do them without tools, pictures or sound.
- The instruction is one or two sentences in English.
- The input is what the instruction works on, with realistic content; if none is needed, <noinput>.
- The output answers the instruction fully and correctly.

List of {total} tasks:
"""
_BLOCK = re.compile(r"^#{2,}\s*$", re.MULTILINE)
_FIELDS = re.compile(
    r"(?:\d+\.\s*)?Instruction:(?P<instruction>.*?)\n\s*(?:\d+\.\s*)?Input:(?P<input>.*?)"
    r"\n\s*(?:\d+\.\s*)?Output:(?P<output>.*)",
    re.DOTALL | re.IGNORECASE,
)
_IMPOSSIBLE = re.compile(
    r"\b(?:image|picture|photo|video|audio|plot|graph|draw|file|map)s?\b", re.I
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfInstruct(Writing):
    """How tasks are written. Raises UsageError for what cannot work."""

    per_round: int = 16  # requests whose prompts see the same pool
    tasks_per_request: int = 8
    shown_seeds: int = 3
    shown_new: int = 2  # fewer in the first round
    rouge: float = 0.7  # ROUGE-L from which an instruction is like another
    max_rounds: int = 100

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(
            per_round=self.per_round,
            tasks_per_request=self.tasks_per_request,
            shown_seeds=self.shown_seeds,
            max_rounds=self.max_rounds,
        )
        if not 0 < self.rouge <= 1:
            raise UsageError(f"rouge is above 0 and at most 1, got {self.rouge!r}")


def self_instruct(seeds: Any, servers: Any, out: str | Path, *, n: int, **settings: Any) -> Dataset:
    """Write tasks in the manner of ``seeds`` until ``n`` are kept; the last round is finished.

    It ends with fewer after ``max_rounds``, or ``BARREN_ROUNDS`` in a row that brought no new task.

    ``seeds`` are rows, or a file of them, with ``instruction`` and ``instances`` (a list of
    ``input`` and ``output``), as the Self-Instruct seed tasks have them, or with ``instruction``,
    ``input`` and ``output``. ``settings`` are those of ``SelfInstruct`` and ``Common``.

    Returns the kept tasks as ``messages``. Raises UsageError, GenerationError.
    """
    whole(n=n)
    common, rest = Common.split(settings, SelfInstruct)
    chosen = SelfInstruct(**rest)
    tasks = [_seed_task(row, i) for i, row in enumerate(source_rows(seeds, "instruction"), 1)]
    generator = _SelfInstruct(tasks, chosen, n, common.seed)
    job = {
        "generator": GENERATOR,
        "seeds": content_hash(tasks),
        "n": n,
        "seed": common.seed,
        "settings": chosen.told(),
    }
    common = replace(common, filters=[generator.novel(), *as_list(common.filters)])
    return run(Plan(job, generator.items, generator), servers, out, common)


@dataclass(frozen=True, slots=True)
class _SelfInstruct:
    """The generator: an item is one request."""

    seeds: Sequence[Mapping[str, str]]
    settings: SelfInstruct
    n: int
    seed: int

    def items(self, store: Store) -> Iterator[Any]:
        """Round by round: the next one is planned when the last is done."""
        pool, new, barren = self._pool(), list[Mapping[str, str]](), 0
        for number in range(self.settings.max_rounds):
            shown = store.once(f"round {number}", self._shown, new, number)
            keys = []
            for call, tasks in enumerate(shown):
                item = Item(
                    {"shown": tasks, "call": [number, call]}, content_hash([number, call, tasks])
                )
                keys.append(item.key)
                yield item
            yield BARRIER
            found = [_task_of(row) for row in store.rows(keys) if _joins(pool, row)]
            new += found
            barren = 0 if found else barren + 1
            if len(new) >= self.n or barren == BARREN_ROUNDS:
                return

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        request = self.settings.request(self.seed, *item.value["call"])
        reply = await ask(user(self._prompt(item.value["shown"])), **request)
        made_by = provenance(GENERATOR, "/".join(map(str, item.value["call"])), reply, request)
        first = len(item.value["shown"]) + 1
        found = read_tasks(
            f"{first}. Instruction:" + said(reply).removeprefix(f"{first}. Instruction:")
        )
        if not found:
            columns = {"messages": user(said(reply))}
            return [Record(columns, made_by, dropped=flaw(reply) or "no task in the reply")]
        if reply.finish_reason == "length":
            found = found[:-1]  # the last one is cut
        return [
            Record(
                {
                    "messages": [
                        *user(_question(task)),
                        {"role": "assistant", "content": task["output"]},
                    ]
                },
                replace(made_by, sample=i),
                extra={name: task[name] for name in ("instruction", "input")},
                dropped=_unfit(task),
            )
            for i, task in enumerate(found)
        ]

    def novel(self) -> Filter:
        """The pool once more, over the whole data set, as a filter that knows the seeds."""
        pool = self._pool()

        def judge(row: Row) -> str:
            return "" if pool.add(row["instruction"]) else "like an earlier instruction"

        return judge

    def _pool(self) -> Pool:
        pool = Pool(self.settings.rouge)
        for task in self.seeds:
            pool.add(task["instruction"])
        return pool

    def _shown(self, new: Sequence[Mapping[str, str]], number: int) -> list[list[Any]]:
        """The tasks shown by each request of a round."""
        every = []
        for call in range(self.settings.per_round):
            draw = random.Random(derived_seed(self.seed, "shown", number, call))
            old = draw.sample(self.seeds, min(self.settings.shown_seeds, len(self.seeds)))
            fresh = draw.sample(new, min(self.settings.shown_new, len(new)))
            every.append([dict(task) for task in (*old, *fresh)])
        return every

    def _prompt(self, shown: Sequence[Mapping[str, str]]) -> str:
        total = len(shown) + self.settings.tasks_per_request
        blocks = [
            f"###\n{i}. Instruction: {task['instruction']}\n{i}. Input:\n"
            f"{task['input'] or '<noinput>'}\n{i}. Output:\n{task['output']}\n"
            for i, task in enumerate(shown, start=1)
        ]
        return _ASK.format(total=total) + "".join(blocks) + f"###\n{len(shown) + 1}. Instruction:"


def read_tasks(text: str) -> list[dict[str, str]]:
    """The tasks of a reply in the format that was shown; what does not follow it is left out."""
    tasks = []
    for block in _BLOCK.split(text):
        match = _FIELDS.search(block)
        if match:
            task = {name: value.strip() for name, value in match.groupdict().items()}
            if task["input"].lower().strip("<>. ") in ("noinput", "none", "n/a"):
                task["input"] = ""
            tasks.append(task)
    return tasks


def _unfit(task: Mapping[str, str]) -> str:
    """Self-Instruct's rules for what is no task, or ""."""
    words = len(task["instruction"].split())
    if not task["output"]:
        return "no answer"
    if words <= 3 or words > 150:
        return "instruction too short or too long"
    if _IMPOSSIBLE.search(task["instruction"]):
        return "needs more than text"
    return "answer repeats the input" if task["output"] == task["input"] else ""


def _question(task: Mapping[str, str]) -> str:
    return f"{task['instruction']}\n\n{task['input']}" if task["input"] else task["instruction"]


def _joins(pool: Pool, row: Row) -> bool:
    return not row["dropped"] and pool.add(row["instruction"])


def _task_of(row: Row) -> dict[str, str]:
    answer = row["messages"][-1]["content"]
    return {"instruction": row["instruction"], "input": row["input"], "output": answer}


def _seed_task(row: Mapping[str, Any], number: int) -> dict[str, str]:
    instances = row.get("instances") or [row]
    found = {"instruction": str(row["instruction"]).strip()}
    for name in ("input", "output"):
        found[name] = str(instances[0].get(name) or "").strip()
    if not found["output"]:
        raise UsageError(f"seed {number} has no output: {found['instruction']:.80}")
    return found
