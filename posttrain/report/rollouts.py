"""The sample of rollouts that a report can browse: whole groups, so that siblings can be compared.

Decides how many: at most MAX_STEPS steps evenly over the run, with the first and the last; of each
up to three groups, where there are such: one that carries signal, one that carries none, one with a
sample that could not be judged. Long completions keep their beginning and their end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from envs import Message
from posttrain.report.history import History, evenly
from posttrain.report.tokens import TokenTexts
from posttrain.types import Group, Ints, Rollout, Turn

MAX_STEPS = 40
GROUPS_PER_STEP = 3
ROLLOUTS_PER_GROUP = 8
HEAD_TOKENS, TAIL_TOKENS = 500, 150  # kept of a completion
MAX_CHARACTERS = 6000  # kept of one message or one score's detail
BUDGET = 12_000_000  # characters over all rollouts, before compression (about a fifth after it)


def browsable(
    history: History, texts: TokenTexts | None, share: int = 1
) -> tuple[list[dict[str, Any]], list[str]]:
    """(rollouts as plain data, what could not be read), of one of ``share`` runs on a page."""
    files = history.run.rollouts
    steps = sorted({*files.sealed_steps(), *files.partial_steps()})
    chosen = evenly(steps, max(2, MAX_STEPS // share))
    found: list[dict[str, Any]] = []
    problems: list[str] = []
    for step in chosen:
        try:
            groups = files.load_step(step) or list(files.load_partial(step).values())
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # Arrow's errors are ValueErrors
            problems.append(f"rollouts of step {step} can't be read: {error!s:.200}")
            continue
        found += _of_step(groups, texts, BUDGET // share // len(chosen))
    return found, problems


def _of_step(groups: list[Group], texts: TokenTexts | None, budget: int) -> list[dict[str, Any]]:
    """The chosen rollouts of one step; at least one, then as long as the budget lasts."""
    found: list[dict[str, Any]] = []
    for group in _telling(groups):
        for rollout in group.rollouts[:ROLLOUTS_PER_GROUP]:
            if budget <= 0 and found:
                return found
            found.append(_rollout(group, rollout, texts))
            budget -= _size(rollout)
    return found


def _telling(groups: Sequence[Group]) -> list[Group]:
    """Up to GROUPS_PER_STEP groups, one of each kind first, in prompt order."""
    kinds: tuple[Callable[[Group], bool], ...] = (
        lambda group: len({value for value in group.values if value is not None}) > 1,
        lambda group: len(set(group.values)) == 1,
        lambda group: None in group.values,
    )
    firsts = [next((g for g in groups if kind(g)), None) for kind in kinds]
    ordered = [group for group in firsts if group is not None] + list(groups)
    unique = list({group.prompt_index: group for group in ordered}.values())
    return sorted(unique[:GROUPS_PER_STEP], key=lambda group: group.prompt_index)


def _rollout(group: Group, rollout: Rollout, texts: TokenTexts | None) -> dict[str, Any]:
    score = rollout.score
    return {
        "step": group.step,
        "prompt": group.prompt_index,
        "sample": rollout.sample_index,
        "id": rollout.rollout_id,
        "task": rollout.task_id,
        "value": score.value,
        "outcome": str(score.outcome),
        "parts": dict(score.parts),
        "detail": _cut(score.detail),
        "end": str(rollout.end_reason),
        "seconds": [round(rollout.generation_s, 3), round(rollout.reward_s, 3)],
        "tokens": rollout.n_completion_tokens,
        "group": group.values,
        "messages": list(_messages(rollout, texts)),
    }


def _messages(rollout: Rollout, texts: TokenTexts | None) -> Iterator[dict[str, Any]]:
    """The conversation. The last assistant messages are the turns': they carry their tokens."""
    written = [i for i, m in enumerate(rollout.messages) if m.get("role") == "assistant"]
    last = written[max(0, len(written) - len(rollout.turns)) :]
    turn_of = dict(zip(last, rollout.turns[len(rollout.turns) - len(last) :], strict=True))
    for index, message in enumerate(rollout.messages):
        shown: dict[str, Any] = {
            "role": str(message.get("role", "?")),
            "text": _cut(message_text(message)),
        }
        if index in turn_of:
            shown["turn"] = _turn(turn_of[index], texts)
        yield shown


def message_text(message: Message) -> str:
    """What it says, then its tool calls, and those that could not be read, a line each."""
    content = message.get("content")
    said = content if isinstance(content, str) else "" if content is None else repr(content)
    lines = [said] if said else []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        lines.append(f"call: {function.get('name')} {function.get('arguments')}")
    lines += [f"unreadable call: {why}" for why in message.get("invalid_tool_calls") or []]
    return "\n".join(lines)


def _turn(turn: Turn, texts: TokenTexts | None) -> dict[str, Any]:
    """Token texts, log-probs in thousandths, and runs of weight versions as [version, count]."""
    completion = turn.completion
    n = len(completion)
    cut = max(0, n - HEAD_TOKENS - TAIL_TOKENS)
    keep = np.r_[0 : min(n, HEAD_TOKENS), HEAD_TOKENS + cut : n] if cut else np.arange(n)
    logprobs = np.nan_to_num(completion.logprobs[keep].astype(np.float64), neginf=-99, posinf=99)
    return {
        "texts": texts.pieces(completion.token_ids[keep].tolist()) if texts else None,
        "ids": completion.token_ids[keep].tolist(),
        "logprobs": np.rint(1000 * logprobs).astype(int).tolist(),
        "versions": _runs(completion.weight_versions[keep]),
        "finish": str(completion.finish_reason),
        "prompt_tokens": len(turn.prompt_ids),
        "cut": [HEAD_TOKENS, cut] if cut else None,
    }


def _runs(values: Ints) -> list[list[int]]:
    return [[version, len(list(run))] for version, run in itertools.groupby(values.tolist())]


def _cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # a page is UTF-8: no lone surrogates
    over = len(text) - MAX_CHARACTERS
    if over <= 0:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n[... {over:,} characters not shown ...]\n{text[-half:]}"


def _size(rollout: Rollout) -> int:
    text = sum(min(MAX_CHARACTERS, len(str(m.get("content")))) for m in rollout.messages)
    return text + 20 * min(rollout.n_completion_tokens, HEAD_TOKENS + TAIL_TOKENS) + 500
