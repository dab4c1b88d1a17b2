"""Rejection sampling, round after round: sample, keep what is right, fine-tune on it, repeat.

    python scripts/rejection_sampling.py [CHECKPOINT] [ROUNDS]

The checkpoint is the quickstart's after fine-tuning (runs/quickstart/sft): it can answer at once,
mostly wrong, or think first, mostly right, and does mostly the former. Nobody tells it that
thinking pays: only right answers are kept, and most of them were thought through, so each round
shifts the model towards thinking (ReST, arXiv:2308.08998). Held-out accuracy after each round, and
one line of JSON at the end.
"""

import json
import sys
import time
from pathlib import Path

import data_gen
import envs
import posttrain
from posttrain.api import evaluate
from posttrain.config import make_config

TASK = {"min_terms": 4, "max_terms": 6, "max_digits": 1}


def accuracy(model: Path, logs: Path) -> float:
    """On 300 held-out problems, sampled at temperature 1."""
    config = make_config(
        {
            "model": str(model),
            "env": "reasoning_gym:chain_sum",
            "env_args": TASK,
            "evaluation": {"tasks": 300},
        }
    )
    return evaluate(config, logs=logs).accuracy


if __name__ == "__main__":
    started = time.time()
    model = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/sft")
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    work = Path("runs") / time.strftime("rejection-%Y%m%d-%H%M%S")
    env = envs.load("reasoning_gym:chain_sum", **TASK)
    measured, kept = [accuracy(model, work / "logs")], []
    for number in range(1, rounds + 1):
        with posttrain.served(model, name="policy") as url:
            data = data_gen.rejection_sample(
                env,
                data_gen.Server(url, "policy"),
                work / f"data-{number}",
                n_tasks=400,
                samples=8,
                max_tokens=64,
                keep=["finished", "correct", {"name": "first", "n": 3}],
                seed=number,
            )
        model = posttrain.sft(model, data, work / f"model-{number}", epochs=2.0, seed=number)
        kept.append(len(data))
        measured.append(accuracy(model, work / "logs"))
        print(f"round {number}: {len(data)} kept, accuracy {measured[-1]:.1%}", file=sys.stderr)
    seconds = round(time.time() - started, 1)
    print(json.dumps({"accuracy": measured, "kept": kept, "wall_s": seconds, "run_dir": str(work)}))
