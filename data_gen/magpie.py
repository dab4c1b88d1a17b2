"""Magpie: an aligned model asked for nothing writes a question itself, and then answers it.

The chat template up to an empty user turn makes the model go on as the user would
(arXiv:2406.08464). The request is a chat completion with that empty turn and two settings,
``continue_final_message`` and ``add_generation_prompt=False``, so the server renders its own
template: vLLM and SGLang know them; an API without them can't do this, and answers as if greeted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.pipeline import Ask, Item
from data_gen.records import Record, content_hash
from data_gen.running import Common, Plan, run
from data_gen.writing import Writing, answered, flaw, provenance, said, user, whole

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "magpie"
EMPTY_TURN: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Magpie(Writing):
    """How questions are drawn. Raises UsageError for what cannot work."""

    temperature: float = 1.0
    system: str = ""  # turns the questions to a field: "You help with mathematics."
    answer_temperature: float = 0.0
    question_tokens: int = 256

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        whole(question_tokens=self.question_tokens)


def magpie(servers: Any, out: str | Path, *, n: int, **settings: Any) -> Dataset:
    """Draw ``n`` questions from a model that was asked nothing, and its answers.

    ``settings`` are those of ``Magpie`` and ``Common``. The system message steers the questions
    and is no part of the rows. Returns ``messages``. Raises UsageError, GenerationError.
    """
    whole(n=n)
    common, rest = Common.split(settings, Magpie)
    chosen = Magpie(**rest)
    job = {"generator": GENERATOR, "n": n, "seed": common.seed, "settings": chosen.told()}
    items = (Item(i, content_hash([GENERATOR, i])) for i in range(n))
    return run(Plan(job, items, _Magpie(chosen, common.seed), n), servers, out, common)


@dataclass(frozen=True, slots=True)
class _Magpie:
    """The generator: an item is a number."""

    settings: Magpie
    seed: int

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        chosen = self.settings
        request = chosen.request(self.seed, item.value) | {"max_tokens": chosen.question_tokens}
        reply = await ask(user("", chosen.system), **request, **EMPTY_TURN)
        question = said(reply)
        if flaw(reply):
            made_by = provenance(GENERATOR, str(item.value), reply, request)
            columns = {"messages": user(question)}
            return [Record(columns, made_by, dropped=f"question: {flaw(reply)}")]
        answer = chosen.request(self.seed, item.value, "answer")
        return [
            await answered(
                ask,
                user(question),
                answer | {"temperature": chosen.answer_temperature},
                name=GENERATOR,
                source=str(item.value),
                extra={"steered_by": chosen.system},
            )
        ]
