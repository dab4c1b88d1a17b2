"""One small HTML file about a trained reward model: its numbers and three plots, opened offline.

The plots are SVG made here: a page of a few kilobytes that stays in the checkpoint's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 360, 260, 44
Points = Sequence[tuple[float, float]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2430; background: #fff; }
figure { display: inline-block; margin: 1rem 1.5rem 1rem 0; vertical-align: top; width: 360px; }
figcaption { font-size: 13px; color: #4a5568; } svg text { font-size: 11px; fill: #4a5568; }
td { padding: 2px 1.2rem 2px 0; } td + td { font-variant-numeric: tabular-nums; }
"""


def page(title: str, record: Mapping[str, Any]) -> str:
    """The whole page; ``record`` is what the trainer keeps as JSON."""
    held_out = record.get("held_out") or {}
    plots = [_losses(record.get("losses") or [])]
    if "calibration" in held_out:
        plots.append(_reliability(held_out["calibration"]))
    if "length" in held_out:
        plots.append(_agreement(held_out["length"]))
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>"
        for name, value in _numbers(record)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><table>{rows}</table>"
        f"{''.join(plots)}</html>\n"
    )


def _numbers(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [("model", str(record.get("model"))), ("steps", str(record.get("steps")))]
    for section in ("held_out", "dropped"):
        for name, value in (record.get(section) or {}).items():
            if isinstance(value, int | float):
                found.append((f"{section}: {name}".replace("_", " "), f"{value:.4g}"))
    length = (record.get("held_out") or {}).get("length") or {}
    for name, value in length.items():
        if isinstance(value, float):
            found.append((f"length: {name}".replace("_", " "), f"{value:.3f}"))
    return found


def _losses(losses: Sequence[Mapping[str, float]]) -> str:
    points = [(entry["step"], entry["loss"]) for entry in losses]
    highest = max([y for _, y in points], default=1.0)
    last = max([x for x, _ in points], default=1.0)
    svg = _svg([("line", points)], (0, last), (0.0, 1.1 * highest), ("step", "training loss"))
    return _figure(svg, "Loss on the batches, before each of the logged steps.")


def _reliability(calibration: Mapping[str, Any]) -> str:
    points = [(b["predicted"], b["observed"]) for b in calibration["bins"]]
    parts = [("faint", [(0.5, 0.5), (1.0, 1.0)]), ("line", points), ("points", points)]
    svg = _svg(parts, (0.5, 1.0), (0.0, 1.0), ("predicted", "observed"))
    text = f"Win probability, said and seen. Mean distance: {calibration['error']:.3f}."
    return _figure(svg, text)


def _agreement(length: Mapping[str, Any]) -> str:
    points = [((b["from"] + b["to"]) / 2, b["agreement"]) for b in length["bins"]]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    ends = (left, right if right > left else left + 1)
    parts = [("faint", [(ends[0], 0.5), (ends[1], 0.5)]), ("line", points), ("points", points)]
    axes = ("tokens that the chosen answer is longer", "agreement")
    text = "Agreement with people by length. A slope means that the model goes by length."
    return _figure(_svg(parts, ends, (0.0, 1.0), axes), text)


def _figure(svg: str, text: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>"


def _svg(
    parts: Sequence[tuple[str, Points]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    axes: tuple[str, str],
) -> str:
    """A plot with its two axes; a part is drawn as "line", "faint" (a dashed one) or "points"."""

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (
            (value - low) / ((high - low) or 1.0)
            for value, (low, high) in zip(point, (x_range, y_range), strict=True)
        )
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    drawn = [_drawn(kind, [place(point) for point in points]) for kind, points in parts]
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    labels = [
        (MARGIN, bottom + 16, "start", f"{x_range[0]:.4g}"),
        (right, bottom + 16, "end", f"{x_range[1]:.4g}"),
        (MARGIN - 6, bottom, "end", f"{y_range[0]:.3g}"),
        (MARGIN - 6, MARGIN + 4, "end", f"{y_range[1]:.3g}"),
        (WIDTH / 2, bottom + 32, "middle", axes[0]),
        (MARGIN, MARGIN - 12, "start", axes[1]),
    ]
    texts = "".join(
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, y, anchor, text in labels
    )
    frame = f'<path d="M{MARGIN} {MARGIN}V{bottom}H{right}" fill="none" stroke="#a0aec0"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{frame}{"".join(drawn)}{texts}</svg>'


def _drawn(kind: str, points: Points) -> str:
    if kind == "points":
        return "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2b6cb0"/>' for x, y in points
        )
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    look = 'stroke="#a0aec0" stroke-dasharray="4 3"' if kind == "faint" else 'stroke="#2b6cb0"'
    return f'<polyline points="{path}" fill="none" {look}/>'
