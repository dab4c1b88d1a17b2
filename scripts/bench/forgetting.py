"""How often the alarm on forgetting is wrong, and what it finds: simulated runs, no model.

    python scripts/bench/forgetting.py --items 100 --churn 0.1 --runs 100

A model that has two fifths of the items right is evaluated 20 times; at each evaluation a share
``--churn`` of the items come out otherwise, as many won as lost. ``false`` is the share of runs
with any alarm. ``found`` is the share of other runs, alike but for their last evaluation, in which
``--fall`` of all items are lost, that are told there at once.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from posttrain.evaluation.forgetting import LEVEL, falls

RIGHT = 0.4
EVALUATIONS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--churn", type=float, default=0.1)
    parser.add_argument("--fall", type=float, default=0.15)
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    steady = [run(rng, options, fall=0.0) for _ in range(options.runs)]
    falling = [run(rng, options, fall=options.fall) for _ in range(options.runs)]
    told = [any(alarm(records[:n]) for n in range(2, len(records) + 1)) for records in steady]
    found = [alarm(records) for records in falling]
    shares = {"false": float(np.mean(told)), "found": float(np.mean(found))}
    print(json.dumps(vars(options) | {"level": LEVEL} | shares))


def run(rng: np.random.Generator, options: argparse.Namespace, fall: float) -> list[dict[str, Any]]:
    """The records of one benchmark over one run."""
    knows = rng.random(options.items) < RIGHT
    # of the many that are wrong a smaller share is won, so that the mean stays
    flips = options.churn / 2 * np.where(knows, 1.0, RIGHT / (1 - RIGHT))
    records = []
    for step in range(EVALUATIONS):
        right = knows ^ (rng.random(options.items) < flips)
        if step == EVALUATIONS - 1:
            right &= ~(knows & (rng.random(options.items) < fall / RIGHT))
        per_task = right.astype(float).tolist()
        about = {"step": step, "items": "", "per_task": per_task}
        records.append(about | {"accuracy": float(right.mean())})
    return records


def alarm(records: list[dict[str, Any]]) -> bool:
    return bool(falls({"simulated": records}))


if __name__ == "__main__":
    main()
