"""A small run whose parts are elsewhere, with short deadlines; started anew it resumes.

python two_hosts_job.py MODEL SETTINGS_JSON       in the folder where ``run`` is, or will be

Prints who answered each request. The first time that step 2 asks the last server of
``rollout.urls``, it leaves a file ``asking`` and waits for a file ``cut``: the test cuts the
network in between, so that requests are under way when it happens.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import envs
import posttrain
from posttrain.engines import client, replica, vllm_engine
from posttrain.learner import process as learner_process

learner_process.SILENT_S = 5.0
replica.HEALTH_TIMEOUT_S = 2.0
vllm_engine._MONITOR_EVERY_S = 0.5


def variety(completion: str) -> float:
    """A reward that even a random model gets some of, and that takes its time."""
    time.sleep(0.3)
    return len(set(completion)) / 20


def watch(last_server: str) -> None:
    ask = client.VllmClient.generate

    async def generate(self, request, **rest):
        if request.request_id.startswith("2-") and self.url == last_server:
            Path("asking").touch()
            while not Path("cut").exists():
                await asyncio.sleep(0.05)
        completion = await ask(self, request, **rest)
        print(json.dumps({"server": self.url, "request": request.request_id}), flush=True)
        return completion

    client.VllmClient.generate = generate


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    watch(settings["rollout"]["urls"][-1])
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(200)]
    env = envs.from_tasks(rows, reward=variety)
    try:
        if Path("run/config.json").exists():
            posttrain.resume("run", env=env, quiet=True)
        else:
            posttrain.grpo(model=sys.argv[1], env=env, run_dir="run", quiet=True, **settings)
    except posttrain.RunError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
