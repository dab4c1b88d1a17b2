"""What a report warns of: a training reward that rises while the held-out result falls.

A reward that is optimised for long enough is exploited (Gao et al., arXiv:2210.10760). What shows
it is what was not optimised: the held-out accuracy, where what is right is decided by something
else than the reward (``rewards.combine`` takes the outcome of its first part, whose weight may be
0), and the held-out mean reward, where only the training prompts are exploited.

The last evaluation is compared with the best before it. Both moves have to be larger than chance:
a fall whose two 95 % intervals do not overlap, and a rise of twice its standard error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from posttrain.report.history import History, Record, is_number

_Z = 1.96
_WINDOW = 5  # steps on either side of an evaluation whose rewards are averaged
Interval = tuple[float, float, float]  # value, low, high


def alarms(history: History) -> list[str]:
    """Sentences for the top of the page."""
    kinds = (("accuracy", _accuracy, ".1%"), ("mean reward", _mean_reward(history), ".3f"))
    found = (_alarm(history, name, read, form) for name, read, form in kinds)
    return [text for text in found if text]


def _alarm(
    history: History, name: str, read: Callable[[Record], Interval | None], form: str
) -> str:
    known = [(int(r["step"]), interval) for r in history.evals if (interval := read(r))]
    if len(known) < 2:
        return ""
    (end, last), before = known[-1], known[:-1]
    start, best = max(before, key=lambda entry: entry[1][0])
    if last[2] >= best[1]:  # the intervals overlap
        return ""
    rewards = _rewards(history, start), _rewards(history, end)
    if not rises(*rewards):
        return ""
    low, high = (statistics.fmean(values) for values in rewards)
    return (
        f"Over-optimised? From step {start} to {end} the training reward rises ({low:.3f} → "
        f"{high:.3f}) while the held-out {name} falls ({best[0]:{form}} → {last[0]:{form}}). Look "
        "at what the best-scored answers say; raise the KL, or stop earlier."
    )


def _accuracy(record: Record) -> Interval | None:
    names = ("accuracy", "accuracy_low", "accuracy_high")
    value, low, high = (record.get(name) for name in names)
    known = is_number(value) and is_number(low) and is_number(high)
    return (float(value), float(low), float(high)) if known else None  # type: ignore[arg-type]


def _mean_reward(history: History) -> Callable[[Record], Interval | None]:
    """The spread of single rewards is taken from training: an evaluation has only their mean."""
    spreads = history.column("reward_std")[1]
    spread = statistics.median(spreads) if spreads else 0.0

    def read(record: Record) -> Interval | None:
        value, n = record.get("mean_reward"), record.get("n_tasks")
        if not is_number(value) or not is_number(n) or not n or not spread:
            return None
        half = _Z * spread / math.sqrt(float(n))  # type: ignore[arg-type]
        return float(value), float(value) - half, float(value) + half  # type: ignore[arg-type]

    return read


def _rewards(history: History, step: int) -> list[float]:
    """Mean rewards of the steps around an evaluation after ``step`` steps."""
    steps, values = history.column("reward_mean")
    if not steps:
        return []
    at = min(max(step, steps[0] + _WINDOW), steps[-1] - _WINDOW + 1)  # a whole window at the ends
    near = [v for s, v in zip(steps, values, strict=True) if at - _WINDOW <= s < at + _WINDOW]
    return near or values


def rises(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the mean rises by more than twice the difference's standard error."""
    if len(before) < 2 or len(after) < 2:
        return False
    error = math.hypot(*(statistics.stdev(v) / math.sqrt(len(v)) for v in (before, after)))
    return statistics.fmean(after) - statistics.fmean(before) > 2 * error
