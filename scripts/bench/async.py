"""What asynchrony gains, and what staleness costs, on the quickstart's task.

Without ``--sweep``: completion tokens per second end to end, ``max_lag`` of 1 over 0. The runs
alternate, each in a process of its own; medians are quoted. The learning rate is tiny, so that
answers keep the start policy's lengths. Which part bounds a run is read from the idle shares: the
busier one.

With ``--sweep``: a real learning rate and the correction ``tis``, one run for each lag. Reward per
step shows what staleness costs, reward per second what is left of the gain.

    python scripts/bench/async.py --model runs/quickstart/sft
    python scripts/bench/async.py --model runs/quickstart/sft --sweep

One line of JSON each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENV: dict[str, Any] = dict(min_terms=4, max_terms=6, min_digits=1, max_digits=1, seed=0)
PROMPTS, GROUP, SKIP = 16, 8, 3  # the first steps warm up, and don't count for speed
STILL, LEARNING = 1e-6, 1e-4  # learning rates
TIMES = ("wait", "train", "sync", "total")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=64, help="longest completion")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 2, 4], help="of the sweep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, help="internal: run with this lag, print its records")
    options = parser.parse_args()
    if options.side is not None:
        print("RECORDS " + json.dumps(records(options, options.side)))
    elif options.sweep:
        print(json.dumps(sweep(options)))
    else:
        print(json.dumps(compare(options)))


def records(options: argparse.Namespace, lag: int) -> list[dict[str, Any]]:
    """The step records of one run."""
    import envs
    import posttrain

    with tempfile.TemporaryDirectory(prefix="async-") as folder:
        run = posttrain.grpo(
            model=options.model,
            env=envs.load("reasoning_gym:chain_sum", **ENV),
            algorithm={"correction": "tis"} if options.sweep else {},
            rollout={"engine": "vllm", "max_tokens": options.max_tokens},
            learner={"learning_rate": LEARNING if options.sweep else STILL},
            evaluation={"tasks": 0},
            checkpoint={"every": 10**6},
            steps=options.steps,
            prompts_per_step=PROMPTS,
            group_size=GROUP,
            max_lag=lag,
            seed=options.seed,
            run_dir=Path(folder) / "run",
            quiet=True,
        )
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


def elsewhere(options: argparse.Namespace, lag: int) -> list[dict[str, Any]]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--side", str(lag), "--model", options.model]
    for name in ("steps", "seed", "max_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--sweep"] if options.sweep else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    for line in done.stdout.splitlines():
        if line.startswith("RECORDS "):
            found: list[dict[str, Any]] = json.loads(line.removeprefix("RECORDS "))
            print(f"max_lag {lag}: {summary(found)}", file=sys.stderr)
            return found
    raise SystemExit(f"the run with max_lag = {lag} failed:\n{done.stderr[-3000:]}")


def summary(run: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed, and medians of where the time went, after the first steps."""
    counted = run[SKIP:]
    seconds = run[-1]["time"] - run[SKIP - 1]["time"]  # whatever happens between two records counts

    def median(name: str) -> float:
        return round(statistics.median(r.get(name) or 0.0 for r in counted), 3)

    shares = {part: median(f"{part}_idle_share") for part in ("engine", "learner")}
    return {
        "tokens_per_s": round(sum(r["completion_tokens"] for r in counted) / seconds, 1),
        "engine_idle_share": shares["engine"],
        "learner_idle_share": shares["learner"],
        "bound_by": min(shares, key=lambda part: shares[part]),
        "lag_mean": round(statistics.fmean(r["lag_mean"] for r in counted), 3),
        "parts_s": {name: median(f"time_{name}_s") for name in TIMES},
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Alternating pairs of max_lag 0 and 1."""
    runs: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for _ in range(options.pairs):
        for lag, found in runs.items():
            found.append(summary(elsewhere(options, lag)))
    speed = {lag: [run["tokens_per_s"] for run in found] for lag, found in runs.items()}
    middle = {lag: statistics.median(values) for lag, values in speed.items()}
    typical = {
        lag: min(found, key=lambda run: abs(run["tokens_per_s"] - middle[lag]))
        for lag, found in runs.items()
    }
    return {
        "ratio": round(middle[1] / middle[0], 2),
        "ratio_of_each_pair": [round(b / a, 2) for a, b in zip(speed[0], speed[1], strict=True)],
        "max_lag_0": typical[0] | {"tokens_per_s": middle[0]},
        "max_lag_1": typical[1] | {"tokens_per_s": middle[1]},
        "completions_per_step": PROMPTS * GROUP,
        "max_tokens": options.max_tokens,
        "steps": options.steps,
        "pairs": options.pairs,
    }


def sweep(options: argparse.Namespace) -> dict[str, Any]:
    """One run for each lag: reward at equal steps, and at equal seconds."""
    runs = {lag: elsewhere(options, lag) for lag in options.lags}
    fewest = min(run[-1]["time"] - run[0]["time"] for run in runs.values())
    rows = {}
    for lag, run in runs.items():
        rewards = [r["reward_mean"] for r in run]
        in_time = [r["reward_mean"] for r in run if r["time"] - run[0]["time"] <= fewest]
        shares = [r["effective_sample_share"] for r in run if "effective_sample_share" in r]
        weights = [r["correction_weight_max"] for r in run if "correction_weight_max" in r]
        rows[lag] = summary(run) | {
            "reward_first_5": _mean(rewards[:5]),
            "reward_mean": _mean(rewards),
            "reward_last_10": _mean(rewards[-10:]),
            "reward_in_equal_time": _mean(in_time[-10:]),
            "seconds": round(run[-1]["time"] - run[0]["time"], 1),
            "lag_max": max(r["lag_max"] for r in run),
            "effective_sample_share": _mean(shares),
            "correction_weight_max": round(max(weights), 2),
            "rewards": [round(reward, 3) for reward in rewards],
        }
    return {"steps": options.steps, "equal_seconds": round(fewest, 1), "max_lag": rows}


def _mean(values: list[float]) -> float:
    return round(statistics.fmean(values), 3)


if __name__ == "__main__":
    main()
