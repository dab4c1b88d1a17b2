"""Slots between the rollouts and the learner; owns the staleness rule.

Slot *s* holds the groups of step *s*. Its rollouts may start once the engine serves a weight
version of at least ``s - max_lag``, so that no token trains weights more than ``max_lag`` steps
newer than those that wrote it. ``max_lag = 0`` is synchronous training: the rollouts of step s wait
for the weights of step s. At most ``max_lag + 1`` slots are ever open, which bounds memory too.

Durability is the run directory's: a group is on disk before it is in its slot.
"""

from __future__ import annotations

import asyncio

from posttrain.types import Group
from posttrain.waits import waiting


class RolloutBuffer:
    """One producer task per step puts, one consumer takes the steps in order."""

    def __init__(self, max_lag: int) -> None:
        self.max_lag = max_lag
        self.version = -1  # what the engine serves; nothing before the first sync
        self._slots: dict[int, list[Group]] = {}
        self._changed = asyncio.Condition()

    async def may_start(self, step: int) -> None:
        """Wait until rollouts for ``step`` would not be too stale."""
        name = f"weights {step - self.max_lag}, for the rollouts of step {step}"
        async with self._changed:
            with waiting(name, owner="loop"):
                await self._changed.wait_for(lambda: self.version >= step - self.max_lag)

    async def room(self) -> None:
        """Wait until fewer than ``max_lag + 1`` slots are full."""
        async with self._changed:
            with waiting("room in the buffer", owner="loop"):
                await self._changed.wait_for(lambda: len(self._slots) <= self.max_lag)

    async def advance(self, version: int) -> None:
        """The engine now serves ``version``."""
        async with self._changed:
            self.version = version
            self._changed.notify_all()

    async def put(self, step: int, groups: list[Group]) -> None:
        """Fill a slot with all groups of a step, in prompt order."""
        async with self._changed:
            if step in self._slots:
                raise ValueError(f"slot {step} is already full: a step would be trained on twice")
            self._slots[step] = groups
            self._changed.notify_all()

    async def take(self, step: int) -> list[Group]:
        """Wait for a slot and empty it."""
        async with self._changed:
            with waiting(f"rollouts of step {step}", owner="engine and rewards"):
                await self._changed.wait_for(lambda: step in self._slots)
            groups = self._slots.pop(step)
            self._changed.notify_all()
            return groups
