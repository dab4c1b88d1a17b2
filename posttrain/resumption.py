"""What a resume may change: where and how fast a run is computed and how long it is, not what.

Everything else decides what is learnt, or what is on disk already; a run with other values there is
another run. Changes are kept in the run's config.json with the step from which they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from posttrain.config import GrpoConfig, change_config
from posttrain.errors import UsageError

CHANGEABLE = (
    *("learner.ranks", "learner.sequence_parallel", "learner.zero_stage", "learner.threads"),
    *("rollout.servers", "rollout.urls", "rollout.threads"),
    *("grpo.steps", "evaluation.every", "checkpoint.*"),
    *("grpo.episode_timeout_s", "grpo.startup_timeout_s", "rollout.request_timeout_s"),
    *("learner.step_timeout_s", "sync.timeout_s"),
)


def changed_config(
    config: GrpoConfig, tree: Mapping[str, Any]
) -> tuple[GrpoConfig, dict[str, tuple[Any, Any]]]:
    """The run's settings with those of ``tree``, and {setting: (before, after)}.

    Raises UsageError naming the settings that can't change.
    """
    changed, changes = change_config(config, tree)
    fixed = [name for name in changes if not any(fnmatch(name, one) for one in CHANGEABLE)]
    if fixed:
        raise UsageError(
            f"a resume can't change {', '.join(fixed)}: the run would become another one. "
            f"It can change {', '.join(CHANGEABLE)}"
        )
    return changed, changes


def check_length(config: GrpoConfig, steps_done: int) -> None:
    """Raises UsageError when fewer steps are asked for than the run has behind it."""
    if config.grpo.steps < steps_done:
        raise UsageError(
            f"grpo.steps = {config.grpo.steps}, and the run's checkpoint has {steps_done} steps "
            "behind it: a resume can make a run longer, not shorter than that"
        )
