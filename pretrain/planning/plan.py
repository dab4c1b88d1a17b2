"""Decides what a plan holds, from the options of the command: numbers in FLOP, bytes, nats, hours.

A budget is spread by each law; a given size keeps its size. Speed is taken from the first that is
there: TFLOP/s, tokens per second, MFU of the GPU's peak, and 0.4 of it when nothing is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pretrain.errors import UsageError
from pretrain.planning.cost import GPUS, Site, cost, flops_for
from pretrain.planning.fit import Fit, fit_law
from pretrain.planning.isoflop import fit_isoflop
from pretrain.planning.law import LAWS, Law, Point, positive
from pretrain.planning.memory import Layout, Shape, rank_memory, read_shape
from pretrain.planning.rates import PUBLISHED, fit_rates, mup_rate
from pretrain.planning.runs import Run, read_runs, tuned

STATED_MFU = 0.4


def make_plan(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of the plan. Raises UsageError for what cannot be planned."""
    shape = read_shape(options.model) if options.model else None
    runs = read_runs(options.runs) if options.runs else []
    parameters = _parameters(options, shape)
    site = _site(options)
    achieved = _achieved(options, parameters)
    budget = _budget(options, parameters, achieved, site)
    fitted = fit_law(tuned(runs)) if options.runs else None
    laws = LAWS | ({"your runs": fitted.law} if fitted else {})
    plan: dict[str, Any] = {"flops": budget, "parameters": parameters, "tokens": options.tokens}
    if budget:
        plan["laws"] = {
            name: _by_law(law, budget, parameters, options) for name, law in laws.items()
        }
        plan["cost"] = asdict(cost(budget, gpus=options.gpus, achieved=achieved, site=site))
        plan["rates"] = _published_rates(plan["laws"]["besiroglu"], shape)
        plan["speed"] = {"gpus": options.gpus, "gpu": options.gpu, "achieved_flops": achieved}
    if fitted:
        plan["fit"] = _fit(fitted, runs, plan)
    if options.mup_from:
        plan["mup_rate"] = _mup(options, shape)
    if shape:
        plan["memory"] = _memory(options, shape)
    if len(plan) == 3:
        raise UsageError(
            "there is nothing to plan: give --flops, --gpu-hours, --parameters with --tokens, "
            "--model or --runs (pretrain plan --help has examples)"
        )
    return plan


def _parameters(options: argparse.Namespace, shape: Shape | None) -> float | None:
    if shape and options.parameters:
        raise UsageError("--parameters and --model both say how large the model is: give one")
    return float(shape.active_parameters) if shape else options.parameters


def _site(options: argparse.Namespace) -> Site:
    watts = GPUS[options.gpu].watts if options.watts is None else options.watts
    return Site(options.price, watts, options.pue, options.grid, options.goodput)


def _achieved(options: argparse.Namespace, parameters: float | None) -> float:
    """FLOP/s of one GPU."""
    if options.tflops is not None:
        positive(tflops=options.tflops)
        return float(options.tflops * 1e12)
    if options.tokens_per_second is not None:
        positive(tokens_per_second=options.tokens_per_second)
        if not parameters:
            raise UsageError("--tokens-per-second is of a size: give --parameters or --model too")
        return float(6 * parameters * options.tokens_per_second)
    share = STATED_MFU if options.mfu is None else options.mfu
    if not 0 < share <= 1:
        raise UsageError(f"--mfu is {share:g}: it is a share of the peak, above 0 and at most 1")
    return share * GPUS[options.gpu].peak


def _budget(
    options: argparse.Namespace, parameters: float | None, achieved: float, site: Site
) -> float | None:
    """FLOP of the training, from the one way it was given; None when it was not."""
    given = {"--flops": options.flops, "--gpu-hours": options.gpu_hours, "--tokens": options.tokens}
    said = [name for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise UsageError(f"{' and '.join(said)} each set the budget: give one")
    for name, value in {**given, "--parameters": parameters}.items():
        if value is not None:
            positive(**{name.removeprefix("--").replace("-", "_"): value})
    if options.flops is not None:
        return float(options.flops)
    if options.gpu_hours is not None:
        return flops_for(options.gpu_hours, achieved=achieved, site=site)
    if options.tokens is not None and parameters is None:
        raise UsageError("--tokens needs a size: give --parameters or --model")
    if options.tokens is not None and parameters is not None:
        return 6.0 * parameters * float(options.tokens)
    return None


def _by_law(
    law: Law, budget: float, parameters: float | None, options: argparse.Namespace
) -> dict[str, Any]:
    """The best for the budget, the given size at it, and the cheapest to train and run."""
    best = law.optimum(budget)
    told: dict[str, Any] = {"optimum": _point(best)}
    wanted = best
    if parameters:
        wanted = law.point(parameters, budget / 6 / parameters)
        told["given"] = _point(wanted)
    if options.inference_tokens is not None:
        told["lifetime"] = lifetime(law, wanted, options.inference_tokens)
    return told


def lifetime(law: Law, wanted: Point, inference_tokens: float) -> dict[str, Any]:
    """The cheapest model of the same loss over its life, and what it saves (FLOP)."""
    point = law.lifetime(wanted.loss, inference_tokens)
    before = wanted.flops + 2 * wanted.parameters * inference_tokens
    after = point.flops + 2 * point.parameters * inference_tokens
    return {**_point(point), "total_flops": after, "saved": 1 - after / before}


def _point(point: Point) -> dict[str, float]:
    ratio = point.tokens / point.parameters
    return {**asdict(point), "flops": point.flops, "tokens_per_parameter": ratio}


def _fit(fitted: Fit, runs: list[Run], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The user's own law with its intervals, and what else the runs tell."""
    told: dict[str, Any] = {
        "runs": len(tuned(runs)),
        "law": asdict(fitted.law),
        "intervals": fitted.intervals(),
        "error": fitted.error,
    }
    largest = max(run.parameters for run in runs)
    if plan["flops"]:
        mine = plan["laws"]["your runs"]
        point = mine.get("given", mine["optimum"])
        told["loss_interval"] = fitted.loss_interval(point["parameters"], point["tokens"])
        told["beyond"] = point["parameters"] / largest
    for name, attempt in (("isoflop", _isoflop), ("rates", _rates)):
        try:
            told[name] = attempt(runs, plan)
        except UsageError as missing:  # the runs need not be made for this too
            told[name] = {"missing": str(missing)}
    return told


def _isoflop(runs: list[Run], plan: Mapping[str, Any]) -> dict[str, Any]:
    found = fit_isoflop(tuned(runs))
    told: dict[str, Any] = {"exponent": found.exponent, "minima": [asdict(m) for m in found.minima]}
    if plan["flops"]:
        told["parameters"] = found.parameters(plan["flops"])
        told["tokens"] = found.tokens(plan["flops"])
        told["interval"] = found.parameters_interval(plan["flops"]) if found.resampled else None
    return told


def _rates(runs: list[Run], plan: Mapping[str, Any]) -> dict[str, Any]:
    law = fit_rates(runs)
    told: dict[str, Any] = {"exponent": law.exponent, "best": law.best}
    if plan["flops"]:
        mine = plan["laws"]["your runs"]
        told["rate"] = law.rate(mine.get("given", mine["optimum"])["parameters"])
    return told


def _published_rates(by_law: Mapping[str, Any], shape: Shape | None) -> dict[str, Any]:
    """Of the given size, or of the best; without the embeddings where these are known."""
    point = by_law.get("given", by_law["optimum"])
    parameters = shape.layers * shape.active_layer_parameters if shape else point["parameters"]
    return {name: asdict(law(parameters, point["tokens"])) for name, law in PUBLISHED.items()}


def _mup(options: argparse.Namespace, shape: Shape | None) -> float:
    if not shape:
        raise UsageError("--mup-from carries a rate to a width: give the new model with --model")
    rate, width = options.mup_from
    return mup_rate(rate, width, shape.hidden)


def _memory(options: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    layout = Layout(
        ranks=options.gpus,
        tensor=options.tensor,
        pipeline=options.pipeline,
        context=options.context,
        sequence_parallel=options.sequence_parallel,
        zero=options.zero,
    )
    size = rank_memory(
        shape,
        layout,
        row_tokens=options.row_tokens,
        rows=options.rows,
        recompute=options.recompute,
    )
    sizes = {"parameters": shape.parameters, "active_parameters": shape.active_parameters}
    return {**sizes, **asdict(size), "total": size.total}
