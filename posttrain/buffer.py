"""Slots between the rollouts and the learner; owns the staleness rule.

Slot *s* holds the groups of step *s*. Steps are trained in order, and step s makes version s + 1
from version s. The rule, with ``max_lag`` in optimiser steps:

    The rollouts of slot s may start once the engine serves version s - max_lag.
    Step s is trained when its slot is full; nobody else's rollouts take its place.

Two things follow. Every token of slot s was written by a version from s - max_lag to s: by no older
one, because nothing began earlier; by no newer one, because version s + 1 does not exist before
step s was trained. And the order of the data is a function of the seed: groups may finish in any
order, slots are trained in theirs.

A long answer does not hold up the engine, nor the steps before its own: it goes on through the
weight syncs, each token marked with the weights that wrote it, while later slots are filled. It
holds up its own step only when it takes longer than the ``max_lag`` steps before that one; then the
learner waits. Nothing is dropped, cut or written anew for its age: short answers would be favoured.

``max_lag = 0`` is synchronous training: the rollouts of step s wait for the weights of step s. At
most ``max_lag + 1`` slots are ever open, which bounds memory too. ``put`` checks the rule.

Durability is the run directory's: a group is on disk before it is in its slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np

from posttrain.errors import RunError
from posttrain.types import Group, Rollout
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
        """Fill a slot with all groups of a step, in prompt order.

        Raises RunError when a token is older or newer than the rule allows.
        """
        self._check_age(step, (rollout for group in groups for rollout in group.rollouts))
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

    def _check_age(self, step: int, rollouts: Iterable[Rollout]) -> None:
        oldest = step - self.max_lag
        for rollout in rollouts:
            for turn in rollout.turns:
                versions = turn.completion.weight_versions
                if np.any((versions < oldest) | (versions > step)):
                    raise RunError(
                        f"rollout {rollout.rollout_id} has tokens of weights {versions.min()} to "
                        f"{versions.max()}; step {step} takes those of {oldest} to {step} "
                        f"(grpo.max_lag = {self.max_lag})"
                    )
