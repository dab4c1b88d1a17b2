"""The judge of a generator: made when the folder is open, with its replies kept there.

So a resumed run asks the judge nothing twice. A judge that the caller made is used as it is, and
keeps what its own settings say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_gen.errors import UsageError
from data_gen.records import content_hash
from data_gen.store import Store
from rewards import judge as judges
from rewards.judge import Criterion, Judge, Rubric

# The four aspects of UltraFeedback (arXiv:2310.01377), in words of our own.
ASPECTS = Rubric(
    criteria=tuple(
        Criterion(name, question, scale=(1, 5))
        for name, question in (
            ("instruction_following", "Does it do all that was asked, within every constraint?"),
            ("honesty", "Does it say how sure it is where it cannot be sure, and claim no more?"),
            ("truthfulness", "Is what it says right, without invention?"),
            ("helpfulness", "Is it complete, clear and of use to who asked?"),
        )
    ),
    instructions="Grade the answer on each aspect by itself: 1 is worst, 5 is best.",
)


@dataclass(slots=True)
class Judging:
    """``given`` is a Judge, or a table: url, model, rubric, and settings of ``rewards.judge``.

    Raises UsageError for a judge that cannot work or does not answer.
    """

    given: Any
    aspects: bool = False  # grade ASPECTS unless a rubric is given
    _made: dict[str, Judge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.given, Judge):
            return
        if not isinstance(self.given, Mapping) or not {"url", "model"} <= set(self.given):
            raise UsageError("judge is a rewards.judge, or a table with url and model")
        self._load({})  # a bad one is told now

    def judge(self, store: Store) -> Judge:
        """The judge, with its replies under ``work/judge``."""
        if isinstance(self.given, Judge):
            return self.given
        place = str(store.folder / "work" / "judge")
        if place not in self._made:
            self._made[place] = self._load({"cache": place, "check": False})
        return self._made[place]

    def told(self) -> dict[str, Any]:
        """For job.json: who judges by what, not where."""
        judge = self.given if isinstance(self.given, Judge) else self._load({"check": False})
        return {"model": judge.asker.model, "rubric": content_hash(repr(judge.rubric))}

    def _load(self, more: Mapping[str, Any]) -> Judge:
        default = {"rubric": ASPECTS} if self.aspects else {}
        return judges.load(**{**default, **self.given, **more})
