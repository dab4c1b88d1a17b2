"""The main job, end to end, on any machine: base checkpoint, SFT, GRPO, evaluation, report.

A small model learns sums of several terms. Its SFT data answers in two styles, at once (mostly wrong)
or after working the sum out (mostly right), and it starts out doing mostly the former. GRPO, which
only ever sees whether the final answer is right, makes it think first.

    python scripts/quickstart.py [seed]
"""

import json
import sys
import time
from pathlib import Path

import envs
import posttrain
import pretrain

if __name__ == "__main__":
    started, seed = time.time(), int(sys.argv[1]) if len(sys.argv) > 1 else 0
    work = Path("runs") / time.strftime("quickstart-%Y%m%d-%H%M%S")
    base = pretrain.make_base(work / "base", seed=seed)
    start = posttrain.sft(base, pretrain.sft_rows(seed=seed), work / "sft", seed=seed)

    run = posttrain.grpo(
        model=start,
        env=envs.load("reasoning_gym:chain_sum", min_terms=3, max_terms=4, max_digits=2, seed=seed),
        steps=60,
        prompts_per_step=16,
        group_size=8,
        learner={"learning_rate": 1e-4, "warmup_steps": 5},
        evaluation={"tasks": 500, "every": 20},
        run_dir=work / "grpo",
        seed=seed,
    )
    print(f"report: {run.path / 'report.html'}", file=sys.stderr)
    print(json.dumps(run.summary | {"wall_s": round(time.time() - started, 1)}))
