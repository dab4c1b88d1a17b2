"""A small job that runs as a process of its own, so that tests can kill and interrupt it.

python small_job.py MODEL RUN_DIR [SETTINGS_JSON]     start, or go on where RUN_DIR holds a run

The setting ``slow_reward_s`` is this file's: a reward that takes so long judges in its place.
"""

import json
import sys
import time
from pathlib import Path

import envs
import posttrain

DEFAULTS = {
    "steps": 12,
    "prompts_per_step": 3,
    "group_size": 4,
    "rollout": {"engine": "embedded", "max_tokens": 12, "dtype": "float32"},
    "learner": {
        "ranks": 0,
        "dtype": "float32",
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "threads": 1,
    },
    "evaluation": {"tasks": 5, "every": 4},
    "checkpoint": {"every": 4},
}


def variety(completion: str) -> float:
    """A reward that even a random model gets some of."""
    return len(set(completion)) / 20


def main(model: str, run_dir: str, settings: dict) -> int:
    """Start the job, or go on with it; for a resume, ``settings`` are what it changes."""
    run = Path(run_dir)
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(200)]
    env = envs.from_tasks(rows, reward=variety)
    slow_s = settings.pop("slow_reward_s", 0.0)

    def slow(completion: str) -> float:
        time.sleep(slow_s)
        return variety(completion)

    reward = [slow] if slow_s else []
    try:
        if (run / "config.json").exists():
            posttrain.resume(run, env=env, **settings)
        else:
            posttrain.grpo(model=model, env=env, reward=reward, run_dir=run, **DEFAULTS | settings)
    except posttrain.RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    given = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    raise SystemExit(main(sys.argv[1], sys.argv[2], given))
