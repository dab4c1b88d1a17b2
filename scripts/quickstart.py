"""The main job, end to end: base checkpoint, SFT, GRPO, evaluation, report. Argument: a seed.

A small model learns sums of four to six terms. It knows two ways to answer: at once, mostly wrong,
or after working the sum out, mostly right; fine-tuning leaves it doing the former. GRPO only ever
sees whether the final answer is right, and finds out that thinking pays.
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
    rows = pretrain.chat_rows(pretrain.CorpusSettings(thinking_share=0.2), 3200, seed=seed + 1)
    start = posttrain.sft(base, rows, work / "sft", seed=seed)

    run = posttrain.grpo(
        model=start,
        env=envs.load("reasoning_gym:chain_sum", min_terms=4, max_terms=6, max_digits=1, seed=seed),
        steps=60,
        prompts_per_step=16,
        learner={"learning_rate": 1e-4},
        evaluation={"tasks": 500, "every": 20},
        run_dir=work / "grpo",
        seed=seed,
    )
    latest = Path("runs/quickstart")  # where scripts/configs/quickstart.toml looks
    latest.unlink(missing_ok=True)
    latest.symlink_to(work.name)
    print(f"report: {run.path / 'report.html'}", file=sys.stderr)
    print(json.dumps(run.summary | {"wall_s": round(time.time() - started, 1)}))
