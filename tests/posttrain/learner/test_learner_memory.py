"""A rank's memory does not grow with the steps it has done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench" / "learner_memory.py"


@pytest.mark.slow
def test_a_ranks_memory_is_flat(checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model", checkpoint, "--steps", "80", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["rss_mb"]) == 10
    # With ever new shapes the same eighty steps grew by a quarter and more.
    assert found["growth_of_second_half"] < 0.05, found
