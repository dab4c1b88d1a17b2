"""The top of a report: what state the run is in, and the few numbers one looks for first."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

from posttrain.report.history import History, Record, is_number, setting


class Card(NamedTuple):
    """A headline number."""

    title: str
    value: str
    text: str
    tone: str = ""  # "good" or "bad"


def cards(history: History) -> list[Card]:
    """The headline numbers that the run can already tell."""
    found = [_accuracy(history), _steps(history), _elapsed(history), _syncs(history)]
    found += [_gap(history), _throughput(history)]
    return [card for card in found if card is not None]


def state(history: History) -> tuple[str, str]:
    """(word, tone) for the run: finished, running, or stopped at a step."""
    done, total = len(history.steps), history.total_steps
    if history.summary or (total is not None and done >= total):
        return "finished", "good"
    if history.run.lock.held_elsewhere():
        return "running", "live"
    if done == 0:
        return "stopped before the first step", "bad"
    return f"stopped after {done} of {total} steps", "bad"


def facts(history: History) -> list[tuple[str, str]]:
    """(name, value) chips: what was trained, on what, by what."""
    manifest, summary = history.manifest, history.summary
    engine = summary.get("engine") or setting(manifest, "rollout.engine")
    stage, ranks = setting(manifest, "learner.zero_stage"), setting(manifest, "learner.ranks")
    found = [
        ("model", setting(manifest, "model")),
        ("environment", setting(manifest, "env")),
        ("advantage", _choice(setting(manifest, "algorithm.advantage"))),
        ("loss", _choice(setting(manifest, "algorithm.loss"))),
        ("engine", _joined(engine, setting(manifest, "rollout.dtype"))),
        ("learner", f"{ranks or 1} x ZeRO-{stage}" if stage is not None else None),
        ("batch", _batch(manifest)),
        ("seed", manifest.get("seed")),
        ("started", manifest.get("created")),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "")]


def _choice(chosen: Any) -> Any:
    """The name of a function; its arguments are in config.json."""
    return chosen["name"] if isinstance(chosen, dict) else chosen


def counted(n: int, thing: str) -> str:
    """1 restart, 2 restarts."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _accuracy(history: History) -> Card | None:
    known = [r for r in history.evals if is_number(r.get("accuracy"))]
    if not known:
        return None
    first, last = known[0], known[-1]
    if len(known) == 1:
        tasks = f"{_interval(first)} on {first.get('n_tasks', '?')} held-out tasks"
        return Card("Held-out accuracy", f"{first['accuracy']:.1%}", tasks)
    gain = 100 * (last["accuracy"] - first["accuracy"])
    value = f"{first['accuracy']:.1%} → {last['accuracy']:.1%}"
    text = f"{gain:+.1f} points; {_interval(first)} → {_interval(last)}"
    if is_number(last.get("n_tasks")):
        text += f" on {last['n_tasks']} tasks"
    return Card("Held-out accuracy", value, text, _tone(first, last))


def _tone(first: Record, last: Record) -> str:
    """A colour only where the two intervals don't overlap."""
    if (last.get("accuracy_low") or 0.0) > (first.get("accuracy_high") or 1.0):
        return "good"
    return "bad" if (last.get("accuracy_high") or 1.0) < (first.get("accuracy_low") or 0.0) else ""


def _interval(record: Record) -> str:
    low, high = record.get("accuracy_low"), record.get("accuracy_high")
    if low is None or high is None:
        return ""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def _steps(history: History) -> Card:
    total = history.total_steps
    skipped = len({r["step"] for r in history.skips})
    text = f"{skipped} skipped" if skipped else "none skipped"
    value = f"{len(history.steps)} of {total}" if total is not None else str(len(history.steps))
    return Card("Steps", value, text, "bad" if skipped else "")


def _elapsed(history: History) -> Card | None:
    records = [*history.steps, *history.evals, *history.syncs, *history.events]
    times = [r["time"] for r in records if is_number(r.get("time"))]
    if not times:
        return None
    seconds = float(history.summary.get("wall_s") or max(times) - min(times))
    ended = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(times)))
    return Card("Wall time", duration(seconds), f"last record {ended}")


def _syncs(history: History) -> Card | None:
    real = [r for r in history.syncs if not r.get("canary")]
    if not real:
        return None
    seconds = [r["seconds"] for r in real if is_number(r.get("seconds"))]
    gaps = [r["probe_gap"] for r in real if is_number(r.get("probe_gap"))]
    parts = [f"median {statistics.median(seconds):.2f} s" if seconds else ""]
    parts += [f"worst gap {max(gaps):.4f}" if gaps else ""]
    restarts = sum(int(r.get("restarts") or 0) for r in real)
    parts += [counted(restarts, "restart") if restarts else ""]
    text = ", ".join(part for part in parts if part)
    return Card("Weight syncs verified", f"{len(real):,}", text, "bad" if restarts else "")


def _gap(history: History) -> Card | None:
    at_start = [r["logprob_gap"] for r in history.events if is_number(r.get("logprob_gap"))]
    values = history.column("logprob_gap")[1]
    if not values and not at_start:
        return None
    limit = setting(history.manifest, "sync.max_probe_gap")
    shown = at_start[0] if at_start else values[0]
    text = "engine against learner, nats per token"
    if values:
        text = (
            f"at the start; {statistics.median(values):.4f} median, {max(values):.4f} worst later"
        )
    over = is_number(limit) and max([shown, *values]) > limit
    return Card("Log-prob gap", f"{shown:.4f}", text, "bad" if over else "good")


def _throughput(history: History) -> Card | None:
    timed = [r for r in history.steps if is_number(r.get("time_total_s"))]
    timed = [r for r in timed if is_number(r.get("completion_tokens"))]
    seconds = sum(r["time_total_s"] for r in timed)
    tokens = sum(r["completion_tokens"] for r in timed)
    if seconds <= 0:
        return None
    text = f"{tokens:,} completion tokens, {seconds / len(timed):.2f} s per step"
    return Card("Tokens per second", f"{tokens / seconds:,.0f}", text)


def _batch(manifest: Record) -> Any:
    prompts, size = setting(manifest, "grpo.prompts_per_step"), setting(manifest, "grpo.group_size")
    return f"{prompts} prompts x {size} samples" if prompts and size else None


def _joined(*parts: Any) -> str:
    return " ".join(str(part) for part in parts if part)
