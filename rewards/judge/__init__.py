"""A language model as a judge, behind any OpenAI-compatible server.

    judge = rewards.judge.load(url, model, rubric)        a reward: graded by a rubric
    await judge.compare(prompt, a, b)                     the better of two, asked in both orders
    await judge.rank(prompt, completions)                 K completions of one prompt
    rewards.judge.Ranked(judge)                           the ranking as a reward of a batch

Read in this order: ``judge`` (what comes out), ``rubric`` and ``verdicts`` (what a verdict is),
``untrusted`` and ``prompts`` (what the judge reads), ``asking``, ``budget``, ``cache`` and
``rewards.chat_server`` (how it is asked), ``audit`` (whether it is any good).
"""

from __future__ import annotations

from typing import Any

from rewards.chat_server import base_url, check_server
from rewards.errors import UsageError
from rewards.judge.asking import Asker
from rewards.judge.failures import Failed
from rewards.judge.group import Ranked
from rewards.judge.judge import Comparison, Judge, Ranking
from rewards.judge.rubric import Criterion, Rubric, read_rubric
from rewards.judge.settings import Settings, read_settings
from rewards.registry import register

__all__ = [
    "Comparison",
    "Criterion",
    "Failed",
    "Judge",
    "Ranked",
    "Ranking",
    "Rubric",
    "Settings",
    "load",
]

DEFAULT_RUBRIC = "Judge how well the answer does what the question asks: right, complete, clear."


@register("judge", factory=True)
def load(
    url: str, model: str, rubric: Any = DEFAULT_RUBRIC, *, check: bool = True, **settings: Any
) -> Judge:
    """A judge: ``model`` at ``url`` (``http://host:port/v1``), asked to grade by ``rubric``.

    ``rubric`` is a Rubric, a list of criteria, a mapping, a text of instructions (graded 1 to 5),
    or the Path of a JSON or TOML file. ``settings`` are those of ``rewards.judge.Settings``.
    ``check`` asks the server for its models first.

    Raises UsageError for a rubric or setting that cannot work, a server that does not answer, a
    refused key, or a model that is not served there.
    """
    if not isinstance(model, str) or not model:
        raise UsageError(f"judge: model is the name that the server knows it by, got {model!r}")
    found, chosen, address = read_rubric(rubric), read_settings(settings), base_url(url, "judge")
    if check:
        check_server(address, model, chosen.api_key_env, "judge")
    return Judge(Asker(address, model, chosen), found)
