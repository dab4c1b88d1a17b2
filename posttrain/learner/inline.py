"""The learner inside the user's own process: for notebooks, tests and small machines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.busy import Busy
from posttrain.config import GrpoConfig
from posttrain.errors import RunError
from posttrain.storage.checked_files import all_written
from posttrain.types import Batch, Floats, Ints, Snapshot, StepResult
from posttrain.waits import waiting

if TYPE_CHECKING:
    from posttrain.learner.learner import RankLearner

T = TypeVar("T")


class InlineLearner:
    """One rank in this process. Commands run in one thread: torch keeps a thread pool for each."""

    world_size = 1

    def __init__(self, config: GrpoConfig, probe_ids: Ints) -> None:
        self._config = config
        self._probe_ids = probe_ids
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")
        self._learner: RankLearner | None = None
        self._busy = Busy()

    @property
    def busy_s(self) -> float:
        return self._busy.seconds

    async def start(self) -> None:
        self._learner = await self._in_thread(self._build)

    async def choices(self) -> dict[str, Any]:
        return await self._in_thread(self._rank.choices)

    async def train(self, batch: Batch) -> StepResult:
        return await self._in_thread(self._rank.train, batch)

    async def examine(self, batch: Batch, what: str) -> list[list[Floats]]:
        return [await self._in_thread(self._rank.examine, batch, what)]

    async def logprobs(self, sequences: Sequence[Ints], temperature: float) -> list[Floats]:
        return await self._in_thread(self._rank.logprobs, sequences, temperature)

    async def publish(self, version: int, folder: Path, *, perturb: float = 0.0) -> Snapshot:
        return await self._in_thread(self._rank.publish, version, folder, perturb)

    async def attach(self, urls: Sequence[str]) -> None:
        await self._in_thread(self._rank.attach, urls)

    async def save(self, folder: Path) -> None:
        await self._in_thread(self._rank.save, folder)

    async def saved(self, folder: Path) -> None:
        def gone() -> str:
            return "" if self._learner else "the learner was closed"

        deadline_s = self._config.learner.step_timeout_s
        await all_written(folder, self.world_size, gone=gone, deadline_s=deadline_s)

    async def load(self, folder: Path) -> None:
        await self._in_thread(self._rank.load, folder)

    async def export(self, folder: Path) -> None:
        await self._in_thread(self._rank.export, folder)

    async def close(self) -> None:
        self._learner = None
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def _rank(self) -> RankLearner:
        if self._learner is None:
            raise RunError("the learner has not been started")
        return self._learner

    def _build(self) -> RankLearner:
        from posttrain.learner.learner import RankLearner

        if self._config.learner.threads:
            import torch

            torch.set_num_threads(self._config.learner.threads)
        return RankLearner(self._config, self._probe_ids)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        def work() -> T:
            with self._busy:
                return function(*arguments)

        loop = asyncio.get_running_loop()
        with waiting(f"learner, {function.__name__.strip('_')}", owner="learner, inline"):
            return await loop.run_in_executor(self._thread, work)
