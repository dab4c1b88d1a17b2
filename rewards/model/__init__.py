"""Learned rewards: ``rewards.model.load`` makes one of a checkpoint, a URL, or several of either.

    reward = rewards.model.load("runs/reward-model")                    # in this process
    reward = rewards.model.load("http://127.0.0.1:8001")                # vLLM's pooling server
    reward = rewards.model.load(["rm-a", "rm-b"], aggregate="min")      # an ensemble
    reward = rewards.model.load_process("prm", aggregate="product")     # step by step

Start reading at ``rewards.model.reading`` for which tokens the model sees, ``checkpoint`` for why
a score does not depend on its batch, ``reward`` for what its Score says. torch, transformers and
httpx are imported when something is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import UsageError
from rewards.model.checkpoint import LocalSettings
from rewards.model.ensemble import Ensemble
from rewards.model.local import LocalScorer
from rewards.model.normalising import RunningStatistics
from rewards.model.process import ProcessReward, load_process
from rewards.model.reading import settings_of
from rewards.model.remote import RemoteScorer, RemoteSettings
from rewards.model.reward import RewardModel, Scorer
from rewards.registry import register

__all__ = ["Ensemble", "ProcessReward", "RewardModel", "RunningStatistics", "load", "load_process"]


@register("reward_model", factory=True)
def load(
    source: str | Path | Sequence[str | Path],
    *,
    name: str = "",
    threshold: float | None = None,
    normalise: bool = False,
    aggregate: str = "mean",
    k: float = 1.0,
    **options: Any,
) -> RewardModel | Ensemble:
    """A reward from a sequence-classification checkpoint, a server's URL, or a list of them.

    ``threshold``: a raw score above it is CORRECT (default: nothing is). ``normalise``: by the
    running statistics of each model, which change only in ``statistics.update()``. ``aggregate``
    (mean, min, mean-std) and ``k`` are for a list. Options of a checkpoint: ``label``, ``dtype``,
    ``device``, ``token_budget``, ``wait_s``; of a URL: ``api``, ``tokenizer``, ``model``,
    ``label``, ``api_key_env``, ``timeout_s``, ``attempts``, ``concurrency``, ``check``; of both:
    ``template``, ``eos``, ``max_tokens``, ``too_long``.

    Raises UsageError for a path that is no reward model, a head without weights, several labels and
    none chosen, a tokenizer without a chat template, a server that does not answer, or an option
    that does not exist. How it can be hacked: see ``RewardModel``.
    """
    if isinstance(source, str | Path):
        scorer = _scorer(source, options)
        return RewardModel(name or _short(source), scorer, threshold=threshold, normalise=normalise)
    sources = [str(one) for one in source]
    short = [_short(one) for one in sources]
    labels = short if len(set(short)) == len(short) else sources
    if len(set(labels)) < max(len(labels), 2):
        raise UsageError(f"a list needs at least two different reward models, got {sources}")
    members = [
        RewardModel(label, _scorer(one, options), normalise=normalise)
        for label, one in zip(labels, sources, strict=True)
    ]
    return Ensemble(members, aggregate=aggregate, k=k, threshold=threshold, name=name)


def _scorer(source: str | Path, options: Mapping[str, Any]) -> Scorer:
    if str(source).startswith(("http://", "https://")):
        return RemoteScorer(str(source), settings_of(RemoteSettings, options))
    return LocalScorer(source, settings_of(LocalSettings, options))


def _short(source: str | Path) -> str:
    """The folder's name, or the URL."""
    text = str(source).rstrip("/")
    return text if "://" in text else Path(text).resolve().name
