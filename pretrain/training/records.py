"""Decides what a run says of itself: a line every few steps, and ``metrics.jsonl``.

    step 1200/4000 30%  loss 3.214  rate 2.9e-03  norm 0.61  41,200 tokens/s  MFU 38%  12 min left

The line's loss is the mean over the steps since the last line whose update was applied. The file
has a record for each step, and one for each evaluation and roll-back; a run that resumes drops what
was recorded after its checkpoint.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.training.rank_files import write_whole

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


@dataclass(slots=True)
class Records:
    """Writes on rank 0 only."""

    folder: Path
    rank: int
    every: int
    steps: int
    tokens: int  # of the whole run
    peak: float  # operations per second of all ranks
    _losses: list[float] = field(default_factory=list)
    _since: float = field(default_factory=time.monotonic)
    _fresh: int = 0  # tokens since the last line
    _flops: float = 0.0  # operations since then

    def say(self, text: str) -> None:
        """One line for a person."""
        if self.rank == 0:
            print(f"pretrain: {text}", file=sys.stderr, flush=True)

    def append(self, record: dict[str, Any], name: str = METRICS) -> None:
        if self.rank == 0:
            with (self.folder / name).open("a") as file:
                file.write(json.dumps(record) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what was recorded after the first ``step`` steps."""
        if self.rank:
            return
        for name in (METRICS, SAMPLES):
            path = self.folder / name
            if path.is_file():
                kept = [line for line in path.read_text().splitlines() if _upto(line, step)]
                write_whole(path, "".join(line + "\n" for line in kept).encode())

    def restart_clock(self) -> None:
        """Time that was not spent on steps does not count."""
        self._since, self._fresh, self._flops, self._losses = time.monotonic(), 0, 0.0, []

    def step(self, record: dict[str, Any], n_tokens: int, flops: float, done: int) -> None:
        """After a step; ``done`` tokens of the run are behind it."""
        self.append(record)
        self._fresh, self._flops = self._fresh + n_tokens, self._flops + flops
        if not record["skipped"]:
            self._losses.append(record["loss"])
        step = record["step"]
        if step % self.every and step != self.steps:
            return
        seconds = max(1e-9, time.monotonic() - self._since)
        speed, mfu = self._fresh / seconds, self._flops / seconds / self.peak
        minutes = (self.tokens - done) / speed / 60
        loss = sum(self._losses) / len(self._losses) if self._losses else math.nan
        self.append({"step": step, "tokens_per_s": round(speed, 1), "mfu": round(mfu, 4)})
        self.say(
            f"step {step}/{self.steps} {100 * step // self.steps}%  loss {loss:.3f}  "
            f"rate {record['rate']:.1e}  norm {record['grad_norm']:.2f}  {speed:,.0f} tokens/s  "
            f"MFU {100 * mfu:.0f}%  {minutes:.0f} min left"
        )
        self.restart_clock()


def _upto(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError):
        return False  # a line the kill cut short
