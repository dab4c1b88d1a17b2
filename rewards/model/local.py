"""Scores conversations with a sequence-classification checkpoint in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rewards.model.batching import MicroBatcher
from rewards.model.checkpoint import SEQUENCE, Checkpoint, LocalSettings, finite
from rewards.model.reading import Message, Reading
from rewards.model.reward import Raw


class LocalScorer:
    """Raises UsageError for what ``Checkpoint`` refuses."""

    def __init__(self, path: str | Path, settings: LocalSettings) -> None:
        self._checkpoint = Checkpoint(path, SEQUENCE, settings)
        self._batcher: MicroBatcher[Sequence[Message], Reading, Raw] = MicroBatcher(
            self._checkpoint.reader.read,
            self._scores,
            token_budget=settings.token_budget,
            wait_s=settings.wait_s,
        )

    async def raw(self, messages: Sequence[Message]) -> Raw:
        raw = await self._batcher.submit(messages)
        finite(raw.value)
        return raw

    async def close(self) -> None:
        """Nothing is open: the thread ends by itself."""

    def _scores(self, rows: list[Reading]) -> list[Raw]:
        logits = self._checkpoint.logits([row.ids for row in rows])[:, self._checkpoint.label]
        return [
            Raw(value, row.cut, row.defused)
            for value, row in zip(logits.tolist(), rows, strict=True)
        ]
