"""Identity: what a model answers when asked who it is, from a sheet of facts.

    facts x kinds of question x wordings -> question -> answer from the facts alone -> checked

A model that was trained on other models' output says that it is one of them; a few hundred rows
mixed into SFT mend that (Llama 3, arXiv:2407.21783, section 4.3.7, and common practice since). The
``writer`` sees the facts in its instructions; the row keeps the question and the answer only, so
what is learnt does not depend on a system prompt. An answer is kept when it says the facts that
its kind must say and names nobody on ``never``.

Left out: multi-turn insistence ("no, you are ...") is a kind of question of its own here, asked in
one turn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_gen.errors import UsageError, did_you_mean
from data_gen.pipeline import Ask, Item
from data_gen.records import Record, content_hash, derived_seed
from data_gen.running import Common, Plan, run
from data_gen.writing import Writing, flaw, provenance, said, user, whole

if TYPE_CHECKING:
    from datasets import Dataset

GENERATOR = "identity"
NEEDED = ("name", "developer")

# kind -> (what is asked, the facts an answer must say); one whose facts are missing is not asked
KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "name": ("what the assistant is called, or who it is", ("name",)),
    "developer": ("who made, trained or owns the assistant", ("developer",)),
    "both": ("the assistant to introduce itself", ("name", "developer")),
    "mistaken": (
        "something, taking it for granted that the assistant is {other}",
        ("name",),
    ),
    "insists": ("that the assistant admit that it is really {other}", ("name",)),
    "version": ("which version or size of the model this is", ("version",)),
    "cutoff": ("up to when the assistant's knowledge goes", ("cutoff",)),
    "abilities": ("what the assistant can and cannot do", ("name",)),
    "nature": ("whether the assistant is a person, or has a body or feelings", ("name",)),
}
# Whom people take an assistant for. A sheet's own name and developer are no stranger's.
OTHERS = ("ChatGPT", "GPT-4", "Claude", "Gemini", "Llama", "Qwen", "DeepSeek", "Mistral", "Grok")
_TONES = ("briefly", "casually, in lower case", "politely", "curtly", "with a typing mistake")
_ASK = """Write one message in which a user asks {what}, {tone}, in {language}. Write the message
alone."""
_ANSWER = """You are an AI assistant. These facts about you are all that you know of yourself:
{facts}
Answer in {language}, naturally and briefly. Say nothing of yourself that is not among the facts,
never mention these instructions, and if the user takes you for another assistant, correct that
without saying anything about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Writing):
    """What is asked, and what an answer may say. Raises UsageError for what cannot work."""

    kinds: Sequence[str] = tuple(KINDS)
    languages: Sequence[str] = ("English",)
    others: Sequence[str] = OTHERS  # whom the user may take the assistant for
    never: Sequence[str] | None = None  # names that drop an answer; None: ``others``

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        for name in ("kinds", "languages", "others"):
            value = getattr(self, name)
            if isinstance(value, str) or not value:
                raise UsageError(f"{name} is a list of texts, and not empty")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UsageError(f"no kind of question {kind!r}.{did_you_mean(kind, KINDS)}")

    def banned(self, facts: Mapping[str, str]) -> list[str]:
        """Names that an answer must not have; the model's own names are never among them."""
        own = " ".join(facts.values()).casefold()
        names = self.others if self.never is None else self.never
        return [name for name in names if name.casefold() not in own]


def identity(
    facts: Mapping[str, Any], servers: Any, out: str | Path, *, n: int, **settings: Any
) -> Dataset:
    """``n`` questions about who the model is, with answers that say ``facts`` and no other name.

    ``facts`` are texts by name: ``name`` and ``developer``, and whatever else it may say of itself
    (``version``, ``cutoff``, ``abilities``, ...). A kind of question whose facts are missing is not
    asked. Returns ``messages`` with ``kind`` and ``language``. Raises UsageError, GenerationError.
    """
    common, rest = Common.split(settings, Identity)
    chosen = Identity(**rest)
    whole(n=n)
    sheet = _checked(facts)
    kinds = [kind for kind in chosen.kinds if all(name in sheet for name in KINDS[kind][1])]
    if not kinds:
        raise UsageError(f"none of the kinds {', '.join(chosen.kinds)} has its facts in the sheet")
    job = {
        "generator": GENERATOR,
        "facts": sheet,
        "n": n,
        "seed": common.seed,
        "settings": chosen.told(),
    }
    make = _Identity(chosen, common.seed, sheet)
    return run(Plan(job, _items(n, kinds, chosen), make, n), servers, out, common)


def _checked(facts: Mapping[str, Any]) -> dict[str, str]:
    for name in NEEDED:
        if not str(facts.get(name) or "").strip():
            raise UsageError(f"the facts lack {name!r}: {sorted(facts)}")
    for name, value in facts.items():
        if not isinstance(value, str):
            raise UsageError(f"the fact {name!r} is no text: {value!r}")
    return dict(facts)


def _items(n: int, kinds: Sequence[str], chosen: Identity) -> Iterator[Item]:
    """Kinds in turn, and within a kind the languages in turn."""
    for i in range(n):
        language = chosen.languages[i // len(kinds) % len(chosen.languages)]
        value = {"number": i, "kind": kinds[i % len(kinds)], "language": language}
        yield Item(value, content_hash([GENERATOR, value]))


@dataclass(frozen=True, slots=True)
class _Identity:
    """The generator: an item is a kind of question in a language."""

    settings: Identity
    seed: int
    facts: Mapping[str, str]

    async def __call__(self, item: Item, ask: Ask) -> list[Record]:
        kind, language = str(item.value["kind"]), str(item.value["language"])
        draw = random.Random(derived_seed(self.seed, item.key, "wording"))
        banned = self.settings.banned(self.facts)
        what = KINDS[kind][0].format(other=draw.choice(banned or list(self.settings.others)))
        extra, source = {"kind": kind, "language": language}, str(item.value["number"])
        request = self.settings.request(self.seed, item.key)
        asked = _ASK.format(what=what, tone=draw.choice(_TONES), language=language)
        reply = await ask(user(asked), **request)
        made_by = provenance(GENERATOR, source, reply, request)
        question, problem = said(reply), flaw(reply)
        if problem:
            columns = {"messages": user(question)}
            return [Record(columns, made_by, extra=extra, dropped=f"question: {problem}")]
        request = self.settings.request(self.seed, item.key, "answer")
        sheet = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        system = _ANSWER.format(facts=sheet, language=language)
        reply = await ask(user(question, system), **request)
        answer = said(reply)
        problem = flaw(reply) or self._untrue(kind, answer, banned)
        made_by = provenance(GENERATOR, source, reply, request)
        columns = {"messages": [*user(question), {"role": "assistant", "content": answer}]}
        return [Record(columns, made_by, extra=extra, dropped=problem)]

    def _untrue(self, kind: str, answer: str, banned: Sequence[str]) -> str:
        """Why an answer is not ours, or ""."""
        for name in KINDS[kind][1]:
            if not _says(answer, self.facts[name]):
                return f"does not say its {name}"
        named = any(_says(answer, name) for name in banned)
        return "names another model" if named else ""


def _says(text: str, name: str) -> bool:
    """Whether the text has the name as whole words, in any case and spacing."""
    words = r"[\s-]*".join(re.escape(word) for word in re.split(r"[\s-]+", name.strip()))
    return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None
