"""The benchmark of the learner runs its smallest cell against the real TRL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench" / "learner.py"
CELL = ["--vocabulary", "128", "--length", "64", "--work", "grpo", "--trl", "trl-bf16"]


@pytest.mark.slow
def test_the_smallest_cell_says_what_each_side_took() -> None:
    command = [sys.executable, SCRIPT, *CELL, "--steps", "1", "--repeats", "1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["vocabulary"], found["length"], found["trl_quickest"]) == (128, 64, "trl-bf16")
    ours, trl, plain = (found["sides"][name] for name in ("ours-bf16", "trl-bf16", "plain-bf16"))
    # 64 answers of 24 to 48 tokens, each after a prompt of 16, the same for every side
    assert ours["tokens"] == trl["tokens"] == plain["tokens"] == 3298
    for side in (ours, trl, plain):
        assert side["tokens_per_s"] == pytest.approx(side["tokens"] / side["step_s"], rel=0.02)
        assert 1 < side["peak_mb"] < 4000
    assert found["memory_ratio_trl"] == pytest.approx(ours["peak_mb"] / trl["peak_mb"], abs=1e-3)
    assert found["speed_ratio_trl"] == pytest.approx(
        ours["tokens_per_s"] / trl["tokens_per_s"], abs=0.01
    )
