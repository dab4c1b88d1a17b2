"""Decides how good a judge is: measured against people's choices, and against itself.

Input: JSON lines (also .gz), one pair each: ``prompt``, ``chosen``, ``rejected``, and ``tie`` (true
or false) if there are ties. Without ``prompt`` the two are dialogues, and what they have in common
is the prompt.

====================  ==============================================================================
agreement             share of judged pairs whose winner, asked in both orders, is the label's
agreement_decided     the same among the pairs where the judge and the label name a winner
first_wins            share of decided verdicts for what stood first; 0.5 has no position bias
flipped               share of pairs on which the order changed the verdict
longer_wins           share of decided verdicts for the longer text; compare with longer_labels
longer_labels         share of labels for the longer text
self_consistency      share of verdicts that come out the same when asked anew, same order
invalid_replies       share of replies that were no verdict
unjudged              share of pairs without two verdicts
====================  ==============================================================================

Shares have 95 % intervals: percentiles of 1,000 resamplings of the pairs. Where the share is 0 or 1
they shrink to nothing; the true share then lies within about 3 / n of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.errors import UsageError
from rewards.judge.judge import Comparison, Judge
from rewards.judge.pairs import Pair

if TYPE_CHECKING:
    import numpy as np

RESAMPLINGS = 1000
FAILURES_IN_A_ROW = 20  # after these the server is taken for gone
# Length of the chosen text over that of the rejected one: the upper ends of the bins.
BINS = ((0.5, "under half"), (0.9, "shorter"), (1.1, "alike"), (2.0, "longer"))
LAST_BIN = "over twice"


Count = tuple[float, float]  # how often it was so, out of how many


@dataclass(frozen=True, slots=True)
class Judged:
    """One labelled pair, what the judge said, and what it said when asked anew."""

    pair: Pair
    first: Comparison  # a is the chosen text
    again: tuple[Comparison, ...] = ()


def audit(
    judge: Judge, pairs: Sequence[Pair], *, repeats: int = 1, repeated_pairs: int = 100
) -> dict[str, Any]:
    """Ask, and measure; see the module docstring for what comes back.

    The first ``repeated_pairs`` pairs are asked ``repeats`` more times, each with its own seed at
    the judge's temperature. Costs 2 verdicts per pair and repetition. Raises UsageError when there
    is no pair, or the first FAILURES_IN_A_ROW all fail.
    """
    if not pairs:
        raise UsageError("audit judge: there is no pair")
    judged = ask_all(judge, pairs, repeats=repeats, repeated_pairs=repeated_pairs)
    usage = judge.usage()
    replies = usage["replies"]
    return {
        "pairs": len(pairs),
        "model": judge.asker.model,
        "temperature": judge.asker.settings.request_with({}).get("temperature"),
        **measure(judged),
        "invalid_replies": usage["invalid_replies"] / replies if replies else None,
        "requests": usage["requests"],
        "tokens": usage["tokens"],
    }


def ask_all(
    judge: Judge, pairs: Sequence[Pair], *, repeats: int = 0, repeated_pairs: int = 0
) -> list[Judged]:
    """What the judge says of each pair, asked in both orders. Raises UsageError as ``audit``."""
    return asyncio.run(_ask_all(judge, pairs, repeats, repeated_pairs))


def measure(judged: Sequence[Judged]) -> dict[str, Any]:
    """All shares with their intervals; a pure function of the verdicts."""
    counted: dict[str, list[Count]] = {
        "agreement": [_agreement(one) for one in judged],
        "agreement_decided": [_agreement_decided(one) for one in judged],
        "first_wins": [_first_wins(one) for one in judged],
        "flipped": [(one.first.flipped, one.first.winner is not None) for one in judged],
        "longer_wins": [_longer_wins(one) for one in judged],
        "longer_labels": [_longer_label(one) for one in judged],
        "self_consistency": [_consistent(one) for one in judged],
        "unjudged": [(one.first.winner is None, 1) for one in judged],
    }
    result: dict[str, Any] = {name: _share(counts) for name, counts in counted.items()}
    names = [label for _, label in BINS] + [LAST_BIN]
    result["agreement_by_length"] = {
        name: _share([_agreement(one) for one in judged if _bin(one.pair) == name])
        for name in names
    }
    return result


def table(result: dict[str, Any]) -> str:
    """The measurements for people."""
    lines = [f"judge {result['model']}, {result['pairs']} pairs, {result['tokens']} tokens"]
    for name, value in result.items():
        if isinstance(value, dict) and "share" in value:
            lines.append(_line(name, value))
    lines.append("agreement where the chosen text is ... the rejected one")
    lines += [_line(f"  {name}", one) for name, one in result["agreement_by_length"].items()]
    invalid = result["invalid_replies"]
    if invalid is not None:
        lines.append(f"{'invalid_replies':<22}{invalid:>7.3f}")
    return "\n".join(lines)


async def _ask_all(
    judge: Judge, pairs: Sequence[Pair], repeats: int, repeated_pairs: int
) -> list[Judged]:
    slots = asyncio.Semaphore(judge.asker.settings.concurrency)
    failures: list[str] = []  # since the last pair that was judged

    async def ask(number: int, pair: Pair) -> Judged:
        async with slots:
            if len(failures) >= FAILURES_IN_A_ROW:
                raise UsageError(
                    f"the judge: {len(failures)} pairs in a row got no verdict, so it stops; "
                    f"the last: {failures[-1]}"
                )
            times = 1 + (repeats if number < repeated_pairs else 0)
            found = [
                await judge.compare(pair.prompt, pair.chosen, pair.rejected, pair.answer, repeat=n)
                for n in range(times)
            ]
            if found[0].failed is None:
                failures.clear()
            else:
                failures.append(found[0].failed.detail)
            return Judged(pair, found[0], tuple(found[1:]))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(n, pair)) for n, pair in enumerate(pairs)]
    except ExceptionGroup as several:  # except* would wrap what it raises in a group again
        stopped = several.subgroup(UsageError)
        raise (several if stopped is None else stopped.exceptions[0]) from None
    finally:
        await judge.aclose()
    return [task.result() for task in tasks]


def _agreement(one: Judged) -> Count:
    label = "tie" if one.pair.tie else "a"
    return one.first.winner == label, one.first.winner is not None


def _agreement_decided(one: Judged) -> Count:
    decided = one.first.winner in ("a", "b") and not one.pair.tie
    return decided and one.first.winner == "a", decided


def _first_wins(one: Judged) -> Count:
    a_first, b_first = one.first.verdicts
    decided = [verdict in ("a", "b") for verdict in one.first.verdicts]
    return (a_first == "a") + (b_first == "b"), sum(decided)


def _longer_wins(one: Judged) -> Count:
    longer = _longer(one.pair)
    if not longer:
        return 0, 0
    decided = [verdict for verdict in one.first.verdicts if verdict in ("a", "b")]
    return decided.count(longer), len(decided)


def _longer_label(one: Judged) -> Count:
    longer = _longer(one.pair)
    return longer == "a", bool(longer) and not one.pair.tie


def _consistent(one: Judged) -> Count:
    same = [
        new == old
        for again in one.again
        for new, old in zip(again.verdicts, one.first.verdicts, strict=True)
        if new is not None and old is not None
    ]
    return sum(same), len(same)


def _longer(pair: Pair) -> str:
    difference = len(pair.chosen) - len(pair.rejected)
    return "a" if difference > 0 else "b" if difference < 0 else ""


def _bin(pair: Pair) -> str:
    ratio = len(pair.chosen) / max(1, len(pair.rejected))
    return next((name for end, name in BINS if ratio < end), LAST_BIN)


def _share(counts: Iterable[Count]) -> dict[str, Any]:
    """``{"share", "low", "high", "of"}``; None where nothing was counted."""
    import numpy as np

    pairs: np.ndarray = np.array([(float(n), float(of)) for n, of in counts]).reshape(-1, 2)
    pairs = pairs[pairs[:, 1] > 0]
    if not len(pairs):
        return {"share": None, "low": None, "high": None, "of": 0}
    total = pairs.sum(axis=0)
    drawn = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLINGS, len(pairs)))
    resampled = pairs[:, 0][drawn].sum(axis=1) / pairs[:, 1][drawn].sum(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {
        "share": round(float(total[0] / total[1]), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "of": int(total[1]),
    }


def _line(name: str, one: dict[str, Any]) -> str:
    if one["share"] is None:
        return f"{name:<22}      -"
    interval = f"[{one['low']:.3f}, {one['high']:.3f}]"
    return f"{name:<22}{one['share']:>7.3f}  {interval}  of {one['of']}"
