"""``posttrain eval``, ``compare`` and ``perplexity``: a model's numbers from the shell."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any


def add_parsers(commands: Any) -> None:
    """The commands; nothing heavy is imported before one runs."""
    one = commands.add_parser("eval", help="a model on benchmarks: gsm8k, math, humaneval, ...")
    one.add_argument("model", help="checkpoint folder or hub name")
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", help="by comma; NAME=FILE for rows of your own")
    what.add_argument("--harness", help="tasks of lm-evaluation-harness, by comma: mmlu,hellaswag")
    one.add_argument("--samples", type=int, default=1, help="completions of each task: mean@k")
    one.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    one.add_argument("--max-tokens", type=int, default=1024, help="longest completion")
    one.add_argument("--templates", type=int, default=3, help="prompt templates of each, at most")
    one.add_argument("--limit", type=int, default=0, help="rows of each benchmark; 0: all")
    one.add_argument("--data", help="folder with the benchmarks' files, or lm-eval's task files")
    one.add_argument("--engine", default="auto", choices=("auto", "vllm", "embedded"))
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, help="folder of the result (default: a new one in runs/)")
    one.set_defaults(run=_eval)

    two = commands.add_parser("compare", help="two evaluations, paired by task")
    two.add_argument("a", help="folder of the first")
    two.add_argument("b", help="folder of the second; positive differences are its")
    two.set_defaults(run=_compare)

    text = commands.add_parser("perplexity", help="perplexity and bits per byte on held-out text")
    text.add_argument("model", help="checkpoint folder or hub name")
    text.add_argument("files", nargs="+", metavar="FILE", help="text, or rows of .jsonl, .parquet")
    text.add_argument(
        "--window", type=int, default=0, help="tokens (default: the model's, <= 2048)"
    )
    text.add_argument("--stride", type=int, default=0, help="tokens (default: half the window)")
    text.add_argument("--column", default="text", help="of a row; its language is in `language`")
    text.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    text.set_defaults(run=_perplexity)


def _eval(options: argparse.Namespace) -> int:
    if options.harness:
        return _eval_harness(options)
    from posttrain.evaluation.running import EvalJob, evaluate_benchmarks
    from posttrain.evaluation.sources import Wanted

    out = options.out or Path("runs") / time.strftime("eval-%Y%m%d-%H%M%S")
    job = EvalJob(
        model=options.model,
        wanted=Wanted(options.tasks, options.data, options.limit, options.templates),
        out=out,
        samples=options.samples,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        engine=options.engine,
        seed=options.seed,
    )
    result = evaluate_benchmarks(job, report=lambda text: print(text, file=sys.stderr))
    _table(result["benchmarks"])
    shown = ("accuracy", "interval", "format_failures", "template_spread")
    headline = {
        name: {key: one[key] for key in shown} for name, one in result["benchmarks"].items()
    }
    for name, one in result["benchmarks"].items():
        for template in one["templates"].values():
            if "safety" in template:
                headline[name]["safety"] = template["safety"]
                _tell_safety(name, template["safety"])
    print(json.dumps({"out": str(out), "benchmarks": headline}))
    return 0


def _eval_harness(options: argparse.Namespace) -> int:
    from posttrain.errors import UsageError

    try:
        from posttrain.evaluation.harness import HarnessJob, evaluate_harness
    except ImportError as error:
        raise UsageError(f"{error}: pip install 'posttrain[harness]'") from error
    if options.samples != 1 or options.temperature != 0.0:
        raise UsageError("--harness measures likelihoods and greedy answers: no --samples")
    job = HarnessJob(
        model=options.model,
        tasks=options.harness,
        out=options.out or Path("runs") / time.strftime("eval-%Y%m%d-%H%M%S"),
        data=options.data,
        limit=options.limit,
        engine=options.engine,
        max_tokens=options.max_tokens,
    )
    result = evaluate_harness(job, report=lambda text: print(text, file=sys.stderr))
    _table(result["benchmarks"])
    shown = ("accuracy", "interval", "metric", "metrics")
    headline = {name: {k: one[k] for k in shown} for name, one in result["benchmarks"].items()}
    print(json.dumps({"out": str(job.out), "benchmarks": headline, "groups": result["groups"]}))
    return 0


def _table(benchmarks: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="accuracy by template")
    headings = ("benchmark", "template", "accuracy", "95 %", "format failures", "pass@k", "maj@k")
    for heading in headings:
        table.add_column(heading)
    for name, one in benchmarks.items():
        for template, numbers in one["templates"].items():
            table.add_row(name, template, *_cells(numbers))
        if len(one["templates"]) > 1:
            table.add_row(name, "mean of templates", *_cells(one), style="bold")
    Console(file=sys.stderr).print(table)


def _tell_safety(name: str, balance: dict[str, Any]) -> None:
    for mistake, one in balance.items():
        low, high = (_percent(share) for share in one["interval"])
        print(
            f"{name}: {mistake.replace('_', ' ')} {_percent(one['share'])} [{low}, {high}] of "
            f"{one['n']}",
            file=sys.stderr,
        )


def _cells(numbers: dict[str, Any]) -> list[str]:
    interval = numbers["interval"]
    return [
        _percent(numbers["accuracy"]),
        f"{_percent(interval[0])} to {_percent(interval[1])}" if interval else "",
        _percent(numbers["format_failures"]),
        *(_largest(numbers.get(name)) for name in ("pass_at_k", "maj_at_k")),
    ]


def _percent(share: float | None) -> str:
    return "not judged" if share is None else f"{100 * share:.1f} %"


def _largest(by_k: dict[int, float] | None) -> str:
    if not by_k:
        return ""
    k = max(by_k)
    return f"{_percent(by_k[k])} (k={k})"


def _compare(options: argparse.Namespace) -> int:
    from posttrain.evaluation.results import compare, read_evaluation

    found = compare(read_evaluation(options.a), read_evaluation(options.b))
    for name, one in found.items():
        print(
            f"{name}: {100 * one['difference']:+.1f} points "
            f"[{100 * one['low']:+.1f}, {100 * one['high']:+.1f}], p = {one['p_value']:.3g}, "
            f"{one['n_tasks']} tasks",
            file=sys.stderr,
        )
    print(json.dumps(found))
    return 0


def _perplexity(options: argparse.Namespace) -> int:
    from posttrain.errors import UsageError
    from posttrain.evaluation.perplexity import measure, read_documents
    from posttrain.preflight import read_config

    documents = read_documents(options.files, options.column)
    longest = int(getattr(read_config(options.model), "max_position_embeddings", 2048))
    window = options.window or min(longest, 2048)
    if not 2 <= window <= longest:
        raise UsageError(f"--window is from 2 to the model's {longest} tokens, got {window}")

    import torch
    from transformers import AutoTokenizer

    from posttrain.model.policy import load_policy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(options.model, getattr(torch, options.dtype), device).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    stride = options.stride or window // 2
    found = measure(policy, tokenizer, documents, window=window, stride=stride)
    for label, one in found.items():
        print(
            f"{label}: perplexity {one['perplexity']:.4g}, {one['bits_per_byte']:.4f} bits per "
            f"byte, {one['tokens']} tokens",
            file=sys.stderr,
        )
    print(json.dumps({"window": window, "stride": stride, "files": found}))
    return 0
