"""How ``pretrain plan`` reads on a terminal; ``--json`` prints what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 22
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
Line = tuple[str, str]


def render(plan: Mapping[str, Any]) -> str:
    """Lines for a person."""
    lines: list[Line] = []
    if plan["flops"]:
        lines += [("budget", f"{plan['flops']:.3g} FLOP"), *_laws(plan["laws"])]
        lines += [*_published(plan["rates"]), *_cost(plan)]
    if "fit" in plan:
        lines += _fit(plan["fit"])
    if "mup_rate" in plan:
        lines.append(("rate by muP's rule", f"{plan['mup_rate']:.3g} for the hidden matrices"))
    if "memory" in plan:
        lines += _memory(plan["memory"])
    return "\n".join(f"{name:{_WIDTH}}{text}".rstrip() for name, text in lines)


def short(number: float) -> str:
    """12345678 -> 12.3 M."""
    for size, unit in _UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def plain(number: float) -> str:
    """26325000 -> 26,325,000; a small one keeps three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def duration(days: float) -> str:
    """0.5 -> 12 hours."""
    for size, unit in ((1, "days"), (1 / 24, "hours"), (1 / 1440, "minutes")):
        if days >= size:
            return f"{days / size:,.3g} {unit}"
    return f"{days * 86400:,.3g} seconds"


def _laws(laws: Mapping[str, Any]) -> list[Line]:
    lines = []
    for name, told in laws.items():
        lines.append((f"best by {name}", _point(told["optimum"])))
        if "given" in told:
            lines.append(("  the given size", _point(told["given"])))
        if "lifetime" in told:
            saved = f", saves {told['lifetime']['saved']:.1%} of training and inference"
            lines.append(("  cheapest over life", _point(told["lifetime"]) + saved))
    return lines


def _point(point: Mapping[str, float]) -> str:
    return (
        f"{short(point['parameters'])} parameters on {short(point['tokens'])} tokens "
        f"({point['tokens_per_parameter']:.3g} each), loss {point['loss']:.3f}"
    )


def _published(rates: Mapping[str, Any]) -> list[Line]:
    return [
        (
            f"rate by {name}",
            f"{pace['rate']:.3g}, with {short(pace['batch_tokens'])} tokens a step",
        )
        for name, pace in rates.items()
    ]


def _cost(plan: Mapping[str, Any]) -> list[Line]:
    cost, speed = plan["cost"], plan["speed"]
    lines = [
        (
            "time",
            f"{duration(cost['days'])} on {speed['gpus']:,} {speed['gpu'].upper()} at "
            f"{speed['achieved_flops'] / 1e12:,.4g} TFLOP/s each",
        ),
        ("GPU hours", plain(cost["gpu_hours"])),
    ]
    if cost["money"]:
        lines.append(("money", f"{cost['money']:,.0f}"))
    tonnes = plain(cost["co2_kg"] / 1000)
    lines.append(("energy", f"{plain(cost['kwh'] / 1000)} MWh, {tonnes} t CO2e"))
    return lines


def _fit(fit: Mapping[str, Any]) -> list[Line]:
    lines = [("your runs", f"{fit['runs']}, fitted with an error of {fit['error']:.2%}")]
    for name, value in fit["law"].items():
        low, high = fit["intervals"][name]
        lines.append((f"  {name}", f"{value:.4g}  [{low:.4g}, {high:.4g}]"))
    if "loss_interval" in fit:
        low, high = fit["loss_interval"]
        reach = f"{fit['beyond']:.3g} times the largest run's size"
        lines.append(("  loss, 90 %", f"{low:.3f} to {high:.3f}, at {reach}"))
    return [*lines, *_isoflop(fit["isoflop"]), *_rates(fit["rates"])]


def _isoflop(told: Mapping[str, Any]) -> list[Line]:
    if "missing" in told:
        return [("  IsoFLOP", f"not fitted: {told['missing']}")]
    text = f"best size goes with budget^{told['exponent']:.3f}"
    if "parameters" in told:
        text += f": {short(told['parameters'])} parameters on {short(told['tokens'])} tokens"
        text += _bounds(told["interval"])
    return [("  IsoFLOP", text)]


def _bounds(interval: Sequence[float] | None) -> str:
    return f" [{short(interval[0])}, {short(interval[1])}]" if interval else ""


def _rates(told: Mapping[str, Any]) -> list[Line]:
    if "missing" in told:
        return [("  learning rate", f"not fitted: {told['missing']}")]
    rate = f": {told['rate']:.3g}" if "rate" in told else ""
    return [("  learning rate", f"goes with parameters^-{told['exponent']:.3f}{rate}")]


def _memory(memory: Mapping[str, float]) -> list[Line]:
    parts = ("weights", "gradients", "optimiser", "activations", "logits")
    each = ", ".join(f"{part} {memory[part] / 2**30:.2f}" for part in parts)
    model = f"{short(memory['parameters'])} parameters"
    if memory["active_parameters"] < memory["parameters"]:
        model += f", {short(memory['active_parameters'])} for a token"
    return [
        ("model", model),
        ("memory of a rank", f"{memory['total'] / 2**30:.2f} GiB"),
        ("", each),
    ]
