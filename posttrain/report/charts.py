"""Which curves a report draws, and from which fields of the records.

A chart is plain data that assets/charts.js draws: a title, a sentence saying how to read it, and
traces of one of these styles:

    line    a curve                     faint   the same, in the background
    points  markers with an interval    area    one layer of a stack
    limit   a dashed horizontal line

A chart without data is left out, so that a run that ended early has a short report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from posttrain.report.history import TIME_COLOURS, TIMES, History, is_number, setting, time_spent

Chart = dict[str, Any]
Trace = dict[str, Any]

MAX_POINTS = 1500  # per curve; a longer run is thinned evenly
SMOOTH_FROM = 24  # points from which a noisy curve also gets a moving average
SMOOTHED = "moving average"
_INTERVALS = "Bars are 95 % intervals."
OUTCOME_COLOURS = {
    "correct": "green",
    "wrong": "red",
    "unparseable": "amber",
    "timeout": "violet",
    "error": "grey",
}
_COLOURS = ("blue", "green", "amber", "violet", "teal", "pink", "red", "grey")
_LAG_COLOURS = ("teal", "blue", "violet", "pink", "amber", "red")  # the last: that old or older


def charts(history: History) -> list[dict[str, Any]]:
    """Sections, each with its charts, ready for JSON; what has no data is left out."""
    sections: dict[str, tuple[Callable[[History], Chart], ...]] = {
        "Learning": (_accuracy, _reward, _outcomes, _signal, _ends, _environment),
        "Benchmarks": tuple(partial(_benchmark, name=name) for name in history.benchmarks),
        "Policy": (_entropy, _length, _kl, _clip_fraction, _grad_norm, _parts),
        "Engine and learner": (_gap, _lag, _weights, _effective, _sync_seconds),
        "Speed": (_time, _idle, _throughput, _memory),
    }
    made = {title: [chart(history) for chart in members] for title, members in sections.items()}
    kept = {
        title: [chart for chart in members if chart["traces"]] for title, members in made.items()
    }
    return [{"title": title, "charts": members} for title, members in kept.items() if members]


def overlays(runs: Mapping[str, History]) -> list[dict[str, Any]]:
    """The curves of several runs over each other, a colour for each run."""
    made = [
        _overlay(runs, title, text, read)
        for title, text, read in (
            ("Held-out accuracy", _INTERVALS, _accuracy),
            ("Reward", "Mean over the step's judged samples; long runs smoothed.", _reward),
            ("Entropy", "Nats per token.", _entropy),
            ("Completion length", "Tokens the model wrote.", _length),
            ("Log-prob gap", "Mean |engine - learner| in nats.", _gap),
            ("Throughput", "Completion tokens per second, end to end.", _throughput),
        )
    ]
    names = dict.fromkeys(name for history in runs.values() for name in history.benchmarks)
    made += [_overlay(runs, name, _INTERVALS, partial(_benchmark, name=name)) for name in names]
    kept = [chart for chart in made if chart["traces"]]
    return [{"title": "Comparison", "charts": kept}] if kept else []


def _overlay(
    runs: Mapping[str, History], title: str, text: str, read: Callable[[History], Chart]
) -> Chart:
    """Of each run's chart the curve in front."""
    traces, shape = [], {}
    for (name, history), colour in zip(runs.items(), _COLOURS, strict=False):
        chart = read(history)
        shape = {key: chart[key] for key in ("form", "bottom") if key in chart}
        front = [trace for trace in chart["traces"] if trace["style"] != "faint"]
        traces += [trace | {"name": name, "colour": colour} for trace in front[:1]]
    return _chart(title, text, traces, **shape)


def marks(history: History) -> list[dict[str, Any]]:
    """Vertical lines on every chart: where a step was skipped or a replica restarted."""
    skipped = [{"x": int(r["step"]), "text": "skipped"} for r in history.skips]
    restarted = [
        {"x": int(r["step"]), "text": "restart"} for r in history.syncs if r.get("restarts")
    ]
    return skipped + restarted


def _accuracy(history: History) -> Chart:
    points = _measured("held out", history.evals, "green")
    training = _trace("training", *history.column("accuracy"), "grey") | {"style": "faint"}
    text = "Share of answers that are correct; bars are 95 % intervals."
    return _chart("Accuracy", text, [training, points], form=".0%")


def _benchmark(history: History, name: str) -> Chart:
    records = history.benchmarks.get(name, [])
    asked = (
        f"Share of its first {records[-1]['n_tasks']} items that are correct; " if records else ""
    )
    return _chart(
        name, f"{asked}bars are 95 % intervals.", [_measured(name, records, "blue")], form=".0%"
    )


def _measured(name: str, records: Sequence[Mapping[str, Any]], colour: str) -> Trace:
    """Accuracies with their intervals, at the steps where they were measured."""
    known = [r for r in records if is_number(r.get("accuracy"))]
    points = _trace(name, [int(r["step"]) for r in known], [r["accuracy"] for r in known], colour)
    return points | {
        "style": "points",
        "low": [r.get("accuracy_low") for r in known],
        "high": [r.get("accuracy_high") for r in known],
    }


def _reward(history: History) -> Chart:
    steps, values = history.column("reward_mean")
    traces = _smoothed("mean reward", steps, values, "blue")
    return _chart("Reward", "Mean over the step's judged samples.", traces)


def _outcomes(history: History) -> Chart:
    records = [r for r in history.steps if isinstance(r.get("outcomes"), dict)]
    totals = [sum(r["outcomes"].values()) or 1 for r in records]
    traces = []
    for name, colour in OUTCOME_COLOURS.items():
        shares = [r["outcomes"].get(name, 0) / n for r, n in zip(records, totals, strict=True)]
        if any(shares):
            steps = [int(r["step"]) for r in records]
            traces.append(_trace(name, steps, shares, colour) | {"style": "area"})
    text = "What the rewards said. Timeouts and errors are masked out, not punished."
    return _chart("Outcomes", text, traces, form=".0%", top=1.0)


def _signal(history: History) -> Chart:
    records = [r for r in history.steps if is_number(r.get("groups_without_signal"))]
    per_step = setting(history.manifest, "grpo.prompts_per_step")
    shares = [_share(r["groups_without_signal"], r.get("groups") or per_step) for r in records]
    steps = [int(r["step"]) for r in records]
    traces = [_trace("groups without signal", steps, shares, "amber")]
    truncated = history.column("truncated_share")
    traces.append(_trace("truncated completions", *truncated, "grey"))
    text = "Groups whose rewards are all equal carry no gradient; truncated ones hit max_tokens."
    return _chart("Wasted samples", text, traces, form=".0%", bottom=0.0)


def _length(history: History) -> Chart:
    mean = _trace("mean", *history.column("completion_length_mean"), "blue")
    longest = _trace("longest", *history.column("completion_length_max"), "grey") | {
        "style": "faint"
    }
    return _chart(
        "Completion length", "Tokens the model wrote.", [longest, mean], form=".0f", bottom=0
    )


def _entropy(history: History) -> Chart:
    return _curve(history, "Entropy", "entropy", "violet", text="Nats per token.")


def _kl(history: History) -> Chart:
    """``kl`` is between engine and learner; ``kl_ref`` exists where there is a reference policy."""
    to_reference = _smoothed("to the reference", *history.column("kl_ref"), "teal")
    engine = _trace("engine to learner", *history.column("kl"), "grey")
    if to_reference[0]["x"]:
        engine["style"] = "faint"
    text = "Estimated on the samples (k3), in nats per token."
    return _chart("KL divergence", text, [engine, *to_reference], form=".5f", bottom=0)


def _clip_fraction(history: History) -> Chart:
    text = "Share of tokens whose ratio was clipped. Near zero is normal on-policy."
    shape = {"form": ".2%", "bottom": 0}
    return _curve(history, "Clip fraction", "clip_fraction", "amber", text=text, **shape)


def _throughput(history: History) -> Chart:
    text = "Completion tokens per second, end to end."
    shape = {"form": ",.0f", "bottom": 0}
    return _curve(history, "Throughput", "completion_tokens_per_s", "blue", text=text, **shape)


def _memory(history: History) -> Chart:
    text = "Peak of the main process, in MB."
    return _curve(history, "Memory", "rss_mb", "grey", text=text, form=",.0f", bottom=0)


def _grad_norm(history: History) -> Chart:
    chart = _curve(history, "Gradient norm", "grad_norm", "pink", text="Before clipping.", bottom=0)
    _add_limit(chart, setting(history.manifest, "learner.max_grad_norm"), "clipped above")
    return chart


def _gap(history: History) -> Chart:
    gap = _trace("on completions", *history.column("logprob_gap"), "blue")
    synced = [r for r in history.syncs if is_number(r.get("probe_gap")) and r["step"] >= 0]
    steps, gaps = [int(r["step"]) for r in synced], [r["probe_gap"] for r in synced]
    chart = _chart(
        "Log-prob gap",
        "Mean |engine - learner| in nats. Above the limit a sync is refused.",
        [_trace("on the sync probe", steps, gaps, "grey") | {"style": "faint"}, gap],
        form=".4f",
        bottom=0,
    )
    _add_limit(chart, setting(history.manifest, "sync.max_probe_gap"), "limit")
    return chart


def _lag(history: History) -> Chart:
    """Tokens by lag, as shares of each step."""
    records = [r for r in history.steps if isinstance(r.get("lag_tokens"), dict)]
    steps = [int(r["step"]) for r in records]
    counted = [{int(lag): n for lag, n in r["lag_tokens"].items()} for r in records]
    oldest, traces = len(_LAG_COLOURS) - 1, []
    for lag, colour in enumerate(_LAG_COLOURS):
        shares = [
            sum(n for one, n in counts.items() if min(one, oldest) == lag)
            / max(1, sum(counts.values()))
            for counts in counted
        ]
        if any(shares):
            name = f"lag {lag}" + (" or more" if lag == oldest else "")
            traces.append(_trace(name, steps, shares, colour) | {"style": "area"})
    text = "Tokens by the optimiser steps between the weights that wrote them and those they train."
    return _chart("Staleness", text, traces, form=".0%", top=1.0)


def _weights(history: History) -> Chart:
    """Of the correction, or of the loss's ratio where there is none."""
    corrected = bool(history.column("correction_weight")[0])
    mean, largest = ("correction_weight", "correction_weight_max")
    if not corrected:
        mean, largest = ("ratio_mean", "ratio_max")
    traces = [
        _trace("largest", *history.column(largest), "grey") | {"style": "faint"},
        _trace("mean", *history.column(mean), "violet"),
    ]
    text = "Learner over engine, for each token: " + (
        "the weights of the correction." if corrected else "the ratio; there is no correction."
    )
    return _chart("Importance weights", text, traces, form=".3f", bottom=0)


def _effective(history: History) -> Chart:
    traces = [
        _trace("masked", *history.column("correction_masked"), "amber"),
        _trace("effective", *history.column("effective_sample_share"), "teal"),
    ]
    text = "Effective sample size as a share of the tokens; below one half lower grpo.max_lag."
    return _chart("Effective samples", text, traces, form=".0%", top=1.0)


def _idle(history: History) -> Chart:
    traces = [
        _trace("engine", *history.column("engine_idle_share"), "blue"),
        _trace("learner", *history.column("learner_idle_share"), "amber"),
    ]
    text = "Share of a step in which each did nothing. The busier one bounds the speed."
    return _chart("Idle", text, traces, form=".0%", top=1.0)


def _sync_seconds(history: History) -> Chart:
    synced = [r for r in history.syncs if is_number(r.get("seconds")) and r["step"] >= 0]
    steps, seconds = [int(r["step"]) for r in synced], [r["seconds"] for r in synced]
    text = "Seconds to transfer, verify and commit the weights."
    return _chart("Weight sync", text, [_trace("seconds", steps, seconds, "amber")], bottom=0)


def _parts(history: History) -> Chart:
    """Mean of each part, where the reward has several."""
    traces = _named(history, "reward_parts")
    return _chart("Reward by part", "Mean of each part.", traces if len(traces) > 1 else [])


def _environment(history: History) -> Chart:
    """What environments tell of their episodes: tool calls, malformed ones, turns."""
    text = "Mean of each number that the environment told of its episodes."
    return _chart("Environment", text, _named(history, "env_info"))


def _ends(history: History) -> Chart:
    """Why episodes ended, where it was not always the same."""
    records = [r for r in history.steps if isinstance(r.get("end_reasons"), dict)]
    names = sorted({name for r in records for name in r["end_reasons"]})
    traces = []
    for name, colour in zip(names, _COLOURS, strict=False):
        shares = [
            r["end_reasons"].get(name, 0) / (sum(r["end_reasons"].values()) or 1) for r in records
        ]
        steps = [int(r["step"]) for r in records]
        traces.append(_trace(name, steps, shares, colour) | {"style": "area"})
    text = "Why episodes ended."
    return _chart("Ends", text, traces if len(names) > 1 else [], form=".0%", top=1.0)


def _named(history: History, field: str) -> list[Trace]:
    """A curve for each of the field's named numbers, as far as there are colours."""
    records = [r for r in history.steps if isinstance(r.get(field), dict)]
    names = sorted({name for r in records for name in r[field]})
    traces = []
    for name, colour in zip(names, _COLOURS, strict=False):
        found = [r for r in records if is_number(r[field].get(name))]
        values = [r[field][name] for r in found]
        traces.append(_trace(name, [int(r["step"]) for r in found], values, colour))
    return traces


def _time(history: History) -> Chart:
    records = [r for r in history.steps if is_number(r.get("time_total_s"))]
    spent = [time_spent(record) for record in records]
    steps = [int(r["step"]) for r in records]
    traces = []
    names = [name for name, _ in TIMES] + ["other"]
    for name, colour in zip(names, TIME_COLOURS, strict=True):
        seconds = [one[name] for one in spent]
        if any(seconds):
            traces.append(_trace(name, steps, seconds, colour) | {"style": "area"})
    text = "Seconds, in the colours of the bar at the top."
    return _chart("Time per step", text, traces, form=".2f", nokey=True)


def time_totals(history: History) -> list[tuple[str, float, str]]:
    """(what, seconds, colour) over all steps, of what took a noticeable share."""
    spent = [time_spent(record) for record in history.steps]
    names = [name for name, _ in TIMES] + ["other"]
    totals = [sum(one[name] for one in spent) for name in names]
    rows = zip(names, totals, TIME_COLOURS, strict=True)
    least = 0.001 * sum(totals)  # what would round to nothing
    return [(name, seconds, colour) for name, seconds, colour in rows if seconds > least]


def _curve(history: History, title: str, field: str, colour: str, **shape: Any) -> Chart:
    """One field of the step records as a curve."""
    return _chart(title, traces=_smoothed(title.lower(), *history.column(field), colour), **shape)


def _chart(title: str, text: str, traces: Sequence[Trace], **shape: Any) -> Chart:
    """``shape``: form (a format that means the same in Python and d3), bottom, top, nokey."""
    chart = {"title": title, "text": text, "form": ".3f", **shape}
    kept = [trace for trace in traces if trace["x"]]
    front = [trace for trace in kept if trace["style"] in ("line", "points")]
    if len(front) == 1:
        ends = [value for value in front[0]["y"] if value is not None]
        chart["last"] = format(ends[-1], chart["form"]) if ends else ""
    return chart | {"traces": [_thinned(trace) for trace in kept]}


def _trace(name: str, x: Sequence[int], y: Sequence[Any], colour: str) -> Trace:
    return {"name": name, "x": list(x), "y": list(y), "colour": colour, "style": "line"}


def _smoothed(name: str, x: Sequence[int], y: Sequence[float], colour: str) -> list[Trace]:
    """The curve; a long one faint, with its exponential moving average in front."""
    if len(x) < SMOOTH_FROM:
        return [_trace(name, x, y, colour)]
    raw = _trace(name, x, y, colour) | {"style": "faint"}
    return [raw, _trace(SMOOTHED, x, list(_moving_average(y)), colour)]


def _moving_average(values: Iterable[float], weight: float = 0.85) -> Iterable[float]:
    """Bias-corrected exponential moving average."""
    total = norm = 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        yield total / norm


def _thinned(trace: Trace) -> Trace:
    """At most MAX_POINTS points, evenly, of five digits: the page has to be small."""
    stride = -(-len(trace["x"]) // MAX_POINTS)
    lists = {key: value[::stride] for key, value in trace.items() if isinstance(value, list)}
    lists = {key: [_rounded(value) for value in values] for key, values in lists.items()}
    return trace | lists


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _add_limit(chart: Chart, value: Any, name: str) -> None:
    """A dashed line, only where the curves come near it: elsewhere it would flatten them."""
    highest = max((y for t in chart["traces"] for y in t["y"] if is_number(y)), default=0.0)
    if chart["traces"] and is_number(value):
        chart["text"] += f" {name.capitalize()}: {value:g}."
        if highest > 0.4 * value:
            chart["limit"] = {"y": value, "text": name}


def _share(part: Any, whole: Any) -> float | None:
    return part / whole if is_number(whole) and whole else None
