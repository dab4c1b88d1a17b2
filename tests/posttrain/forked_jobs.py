"""What test_faults.py runs in processes that it forks: jobs by name, their output in a file."""

import asyncio
import os
import time
from pathlib import Path

import envs
import posttrain
from envs import Step
from rewards import Outcome, Score
from tests.posttrain import small_job

HANGS = " 7 "  # in a prompt: what judges it never answers


def run(log: Path, job: str, *arguments) -> None:
    """The whole of a forked process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    jobs = {"small": small_job.main, "hanging": hanging}
    raise SystemExit(jobs[job](*arguments))


def hanging(model: str, run_dir: str, settings: dict) -> int:
    """A job whose judge hangs on some prompts: a plain reward, an async one, an environment."""
    rows = [{"prompt": f"what is {i % 9} + 1 ?"} for i in range(30)]
    judge = settings.pop("judge")
    if judge == "environment":
        tasks = envs.from_tasks(rows, reward=small_job.variety).tasks
        env = envs.Episodes("hanging", tasks, _HangingEnv)
    else:
        env = envs.from_tasks(rows, reward={"plain": _plain, "async": _async}[judge])
    posttrain.grpo(model=model, env=env, run_dir=run_dir, **small_job.DEFAULTS | settings)
    return 0


def _plain(prompt: str, completion: str) -> float:
    if HANGS in prompt:
        time.sleep(3600)
    return small_job.variety(completion)


async def _async(prompt: str, completion: str) -> float:
    if HANGS in prompt:
        await asyncio.sleep(3600)
    return small_job.variety(completion)


class _HangingEnv:
    def start(self, task, *, seed):
        self.messages = task.messages
        return task.messages

    def step(self, message):
        value = _plain(self.messages[0]["content"], message["content"])
        return Step(score=Score(value, Outcome.WRONG), done=True)

    def close(self):
        pass
