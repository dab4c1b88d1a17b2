"""The orchestrator is killed while answers are half written, under weights that changed on the way.

The run attaches to the session's vLLM server, which outlives it: what is lost with the orchestrator
is the rollouts in flight, and those alone.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from posttrain.storage.rollout_files import group_to_record
from posttrain.storage.run_dir import RunDir
from posttrain.types import Group
from posttrain.waits import REQUESTS
from tests import forked
from tests.posttrain import small_job

STEPS, LAG, PROMPTS, GROUP = 6, 2, 3, 4
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "max_lag": LAG,
    "prompts_per_step": PROMPTS,
    "group_size": GROUP,
    "learner": {"ranks": 0, "learning_rate": 1e-4, "warmup_steps": 2, "threads": 1},
    "sync": {"max_probe_gap": 0.1},
    "evaluation": {"tasks": 0},
    "checkpoint": {"every": 2, "keep": STEPS},
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model(vllm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's model with a tokenizer: a word for each of its ids."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("with-words") / "model"
    shutil.copytree(vllm_checkpoint, folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    known = ["<unk>", "<pad>", "<start>", "<end>", "what", "is", "+", "?", *map(str, range(200))]
    words = known + [f"w{i}" for i in range(len(known), size)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<pad>",
        chat_template="<start> {% for m in messages %}{{ m['content'] }} {% endfor %}",
    ).save_pretrained(folder)
    return folder


class Life:
    """One process of a run."""

    def __init__(self, model: Path, run_dir: Path, **settings: Any) -> None:
        self.log = run_dir.with_suffix(".log")
        script = [sys.executable, small_job.__file__, model, run_dir, json.dumps(settings)]
        with self.log.open("a") as log:
            self.process = forked.start(script, stdout=log, stderr=log)

    def end(self, seconds: float = 200.0) -> None:
        assert self.process.wait(seconds) == 0, self.log.read_text()


def steps_done(run: RunDir) -> int:
    return sum(record["kind"] == "step" for record in run.read_metrics())


def groups_on_disk(run: RunDir) -> dict[tuple[int, int], Group]:
    """(step, prompt) -> what a crash can't take any more."""
    found = {}
    for step in range(STEPS):
        stored = run.load_step(step)
        groups = run.load_partial(step).values() if stored is None else stored
        found |= {(step, group.prompt_index): group for group in groups}
    return found


def carried_over(run: RunDir) -> tuple[int, int] | None:
    """(step, prompt) of an answer that began before the last sync, and is not finished after it."""
    synced = max((r["time"] for r in run.read_metrics() if r["kind"] == "sync"), default=0.0)
    status = json.loads((run.path / "status.json").read_text())
    for wait in status["waits"]:
        if wait["name"] == REQUESTS and wait["since"] < synced < status["written"]:
            step, prompt, *_ = wait["oldest"].removeprefix("request ").split("-")
            where = int(step), int(prompt)
            return None if where in groups_on_disk(run) else where
    return None


def versions(groups: Iterable[Group]) -> Iterator[np.ndarray]:
    for group in groups:
        for rollout in group.rollouts:
            yield rollout.turns[0].completion.weight_versions


def test_a_kill_amid_partial_rollouts_loses_none_and_trains_on_none_twice(
    vllm_engine: Any, model: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    rollout = {"engine": "vllm", "urls": [vllm_engine.urls[0]], "max_tokens": 120}
    rollout["max_concurrency"] = 8  # so that a step's answers take longer than its training
    life = Life(model, run_dir, **SETTINGS, rollout=rollout)
    run = RunDir(run_dir)
    deadline = time.monotonic() + 200
    lost = None
    while lost is None:
        assert life.process.poll() is None, life.log.read_text()
        assert time.monotonic() < deadline, life.log.read_text()
        time.sleep(0.01)
        if steps_done(run) >= 2 and carried_over(run) is not None:
            life.process.send_signal(signal.SIGSTOP)  # now nothing can be finished any more
            if (lost := carried_over(run)) is None:
                life.process.send_signal(signal.SIGCONT)
    life.process.kill()
    assert life.process.wait(20) == -signal.SIGKILL
    before = groups_on_disk(run)
    assert lost not in before

    Life(model, run_dir).end()
    after = groups_on_disk(run)
    assert after.keys() == {(s, p) for s in range(STEPS) for p in range(PROMPTS)}
    for where, group in before.items():  # nothing lost, to the last bit
        assert group_to_record(after[where]) == group_to_record(group)
    for (step, _), group in after.items():
        assert all(step - LAG <= v.min() and v.max() <= step for v in versions([group]))
    anew = [after[where] for where in after.keys() - before.keys()]
    for groups in (before.values(), anew):  # in both are answers that several weights wrote
        assert any(len(set(v)) > 1 for v in versions(groups))
    names = [r.rollout_id for group in after.values() for r in group.rollouts]
    assert len(set(names)) == len(names) == STEPS * PROMPTS * GROUP

    # Nothing trained on twice: the weights are those of a learner that takes each step once.
    again = tmp_path / "again"
    shutil.copytree(run_dir, again)
    shutil.rmtree(again / "checkpoints")
    shutil.rmtree(again / "model")
    Life(model, again).end()
    once, twice = (load_file(d / "model/model.safetensors") for d in (again, run_dir))
    start = load_file(model / "model.safetensors")
    assert [name for name in once if not torch.equal(once[name], twice[name])] == []
    assert any(not torch.equal(once[name], start[name]) for name in start)
