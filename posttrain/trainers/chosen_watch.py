"""Watches the log-prob of the chosen answers, and says once when it falls.

Where there is a reference the fall is against it, on the same answers: reward / beta. Without one
it is against the first logged batches, so it is a little noisy.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

FALL, FALL_SHARE = 1.0, 0.1  # told from this many nats, and this share of the start, on


class ChosenWatch(TrainerCallback):  # type: ignore[misc]
    """A callback of the trainer; ``numbers`` and ``warnings`` are for the record."""

    def __init__(self, beta: float, reference: bool) -> None:
        self.warnings: list[str] = []
        self._beta, self._reference = beta, reference
        self._seen: list[tuple[int, float, float]] = []  # step, log-prob, its change

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A training that goes on has a past."""
        for logs in state.log_history:
            self._look(int(logs["step"]), logs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A window of steps was logged."""
        self._look(int(state.global_step), logs or {})

    def _look(self, step: int, logs: Mapping[str, float]) -> None:
        if not {"logps/chosen", "rewards/chosen"} <= logs.keys():
            return
        now = float(logs["logps/chosen"])
        if self._reference:
            change = float(logs["rewards/chosen"]) / self._beta
        else:
            change = now - (self._seen[0][1] if self._seen else now)
        self._seen.append((step, now, change))
        start = now - change
        if not self.warnings and change < -max(FALL, FALL_SHARE * abs(start)):
            text = (
                f"step {step}: the chosen answers became less likely: their mean log-prob fell "
                f"from {start:.1f} to {now:.1f}. See docs/preferences.md"
            )
            self.warnings.append(text)
            print(f"! {text}", file=sys.stderr)

    def numbers(self) -> dict[str, float]:
        """How the log-prob of the chosen answers moved."""
        if not self._seen:
            return {}
        changes = [change for _, _, change in self._seen]
        return {"end": self._seen[-1][1], "change": changes[-1], "lowest_change": min(changes)}
