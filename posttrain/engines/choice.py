"""Which engine a job gets: vLLM where it is installed or attached to, else the embedded one."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import GrpoConfig
from posttrain.types import Engine


def make_engine(config: GrpoConfig, logs: Path, model: Path | None = None) -> Engine:
    """An engine that is not started yet; server logs go to ``logs``.

    ``model`` is the folder it starts from, where that is not ``config.model``; it may be written
    between now and the start.
    """
    if config.rollout.engine == "vllm":
        from posttrain.engines.vllm_engine import VllmEngine

        return VllmEngine(config, logs, model=model)
    from posttrain.engines.embedded import EmbeddedEngine

    return EmbeddedEngine(
        model or config.model,
        dtype=config.rollout.dtype,
        max_probe_gap=config.sync.max_probe_gap,
        max_batch=config.rollout.max_concurrency,
    )
