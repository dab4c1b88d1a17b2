"""From settings and Python objects to a job that passed every check; no model is loaded yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import envs
import rewards
from envs import Environment, Task
from posttrain import preflight
from posttrain.chat import Chat
from posttrain.config import GrpoConfig
from posttrain.evaluation.light import light_suites
from posttrain.evaluation.sources import Suite, check_room
from posttrain.rollout import EpisodeLimits, Player
from posttrain.shadowing import check_shadowing
from posttrain.tasks import TaskPlan
from posttrain.trackers import check_trackers
from posttrain.types import Engine, Sampling

Reward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that passed every check; nothing is loaded or written yet."""

    config: GrpoConfig
    environment: Environment
    reward: Reward | None
    chat: Chat
    window: int
    plan: TaskPlan
    held_out: list[Task]
    benchmarks: list[Suite]

    def player(self, engine: Engine, temperature: float) -> Player:
        """What plays this job's episodes on ``engine``."""
        settings = self.config.grpo
        return Player(
            engine=engine,
            environment=self.environment,
            chat=self.chat,
            sampling=Sampling(
                max_tokens=self.config.rollout.max_tokens,
                temperature=temperature,
                stop_token_ids=self.chat.stop_token_ids,
            ),
            limits=EpisodeLimits(settings.max_turns, self.window, settings.episode_timeout_s),
            reward=self.reward,
        )


def prepare(
    config: GrpoConfig,
    env: str | Environment | None,
    reward: Sequence[str | Reward] | None,
) -> Prepared:
    """Check everything that can be checked. Raises UsageError."""
    check_shadowing()
    check_trackers(config.trackers)
    config = preflight.check_settings(config)
    chosen = tuple(config.reward) if reward is None else tuple(reward)
    function = _reward(chosen)
    named = env if env is not None else config.env
    if not isinstance(named, str):
        environment = named
    elif function is not None and envs.is_data(named) and "reward" not in config.env_args:
        environment = envs.load(named, reward=function, **config.env_args)
        function = None  # the environment judges with it
    else:
        environment = envs.load(named, **config.env_args)
    n_held_out = config.evaluation.chosen.held_out
    held_out = environment.tasks.held_out(n_held_out) if n_held_out else []
    benchmarks = light_suites(config.evaluation.chosen, best_by=config.checkpoint.kept.by)
    if function is not None:
        preflight.check_columns(function, environment.tasks.train(0))
    window = preflight.model_window(config.model, config)
    preflight.check_model(config)
    _check_lora_targets(config)
    chat = preflight.load_chat(config.model)
    preflight.check_tools(environment, chat)
    plan = TaskPlan(environment, chat, config, window)
    plan.check(held_out)
    check_room(benchmarks, chat, window)
    return Prepared(config, environment, function, chat, window, plan, held_out, benchmarks)


def _check_lora_targets(config: GrpoConfig) -> None:
    if config.learner.lora is None:
        return  # torch and transformers are slow to import
    from posttrain.model.lora import check_targets

    if config.learner.lora is not None:
        check_targets(config.learner.lora.targets, config.model)


def _reward(chosen: Sequence[str | Reward]) -> Reward | None:
    if not chosen:
        return None
    if len(chosen) == 1:
        return rewards.load(chosen[0]) if isinstance(chosen[0], str) else chosen[0]
    return rewards.combine(chosen)
