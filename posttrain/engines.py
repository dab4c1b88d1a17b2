"""Which engine a job gets: vLLM where it is installed or attached to, else the embedded one."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import GrpoConfig
from posttrain.types import Engine


def make_engine(config: GrpoConfig, logs: Path) -> Engine:
    """An engine that is not started yet; server logs go to ``logs``."""
    if config.rollout.engine == "vllm":
        from posttrain.vllm_engine import VllmEngine

        return VllmEngine(config, logs)
    from posttrain.embedded import EmbeddedEngine

    return EmbeddedEngine(
        config.model,
        dtype=config.rollout.dtype,
        max_probe_gap=config.sync.max_probe_gap,
        max_batch=config.rollout.max_concurrency,
    )
