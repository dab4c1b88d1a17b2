"""What a script calls: ``grpo`` starts a run, ``resume`` goes on with one, ``Run`` looks at it.

Decides how Python arguments become settings: the same names as in TOML.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rewards
from envs import Environment
from posttrain.config import CheckpointSettings, GrpoConfig, GrpoSettings, Settings, make_config
from posttrain.engines.attached import check_servers
from posttrain.execution import evaluate_model, execute
from posttrain.held_out import read_result
from posttrain.job import model_folder
from posttrain.preparation import prepare
from posttrain.presets import explain
from posttrain.registry import choice_of
from posttrain.resumption import changed_config, check_length
from posttrain.storage.checkpoint import Start, find_start
from posttrain.storage.run_dir import RunDir
from posttrain.types import EvalResult

Reward = Callable[..., Any]
Section = Mapping[str, Any] | Settings


def grpo(
    *,
    model: str | Path,
    env: str | Environment,
    reward: str | Reward | Sequence[str | Reward] = (),
    run_dir: str | Path = "runs/grpo",
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train ``model`` with GRPO on ``env`` and return the finished run.

    ``reward``: registered names or functions ``f(prompt, completion, answer, **columns)``; several
    are added up. Without any, the environment's own score counts. ``settings``: sections
    (``rollout=``, ``learner=``, ``algorithm=``, ``evaluation=``, ``sync=``, ``checkpoint=``; a
    mapping or the settings class; ``rollout="vllm"`` is short for ``{"engine": "vllm"}``) and the
    fields of ``GrpoSettings`` by name (``steps=100``). `posttrain settings` lists them all. In
    ``algorithm=`` a function of your own stands wherever a name does; it must be at the top of a
    file, and a script that is such a file starts its run under ``if __name__ == "__main__"``.

    Raises UsageError for bad input, before any model is loaded and with nothing written, and
    RunError when the run had to stop. After Ctrl-C it returns what was reached.
    """
    given = [reward] if isinstance(reward, str) or callable(reward) else list(reward)
    named = env if isinstance(env, str) else env.name
    tree = _tree(settings) | {
        "model": str(model),
        "env": named,
        "reward": [rewards.name_of(one) if callable(one) else one for one in given],
        "run_dir": str(run_dir),
    }
    config = make_config(tree)
    return run_config(config, env=env, reward=given, quiet=quiet)


def run_config(
    config: GrpoConfig,
    *,
    env: str | Environment | None = None,
    reward: Sequence[str | Reward] | None = None,
    quiet: bool = False,
) -> Run:
    """Start the run that ``config`` describes; ``env`` and ``reward`` replace what it names."""
    ready = prepare(config, env, reward)
    check_servers(ready.config, ready.window)
    if config.algorithm.preset and not quiet:
        print("\n".join(explain(config.algorithm.preset)), flush=True)
    described = {
        "name": ready.environment.name,
        "held_out_tasks": len(ready.held_out),
        "benchmarks": {suite.benchmark: len(suite.tasks) for suite in ready.benchmarks},
    }
    run_dir = RunDir.create(ready.config.run_dir, ready.config, described)
    execute(ready, run_dir, Start(), quiet=quiet)
    return Run(run_dir.path)


def resume(
    run: str | Path,
    *,
    env: str | Environment | None = None,
    reward: str | Reward | Sequence[str | Reward] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Go on with an interrupted run from its last whole checkpoint and its rollouts on disk.

    An environment or reward that was a Python object must be given again: a run keeps its name.
    ``settings``, as for ``grpo``: other placement or more steps (``resumption.CHANGEABLE``).

    Raises UsageError for a setting that a resume can't change, and RunError when every checkpoint
    is damaged; nothing is written then.
    """
    config = RunDir.open(run).load_config().model_copy(update={"run_dir": str(run)})
    config, changes = changed_config(config, _tree(settings))
    if isinstance(reward, str) or callable(reward):
        reward = [reward]
    ready = prepare(config, env, reward)
    check_servers(ready.config, ready.window)
    with RunDir.resume(run) as run_dir:
        start = find_start(run_dir.checkpoints)
        check_length(config, start.step)
        if changes:
            run_dir.change_config(config, changes, start.step)
        run_dir.truncate_from(start.step)
        lost = run_dir.rollouts.set_damaged_aside(start.step)
        notes = [f"rollouts/{name} is damaged: its rollouts are generated again" for name in lost]
        start = dataclasses.replace(start, notes=(*start.notes, *notes))
        (run_dir.path / "summary.json").unlink(missing_ok=True)
        execute(ready, run_dir, start, quiet=quiet)
    return Run(run_dir.path)


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder, and what can be asked of it."""

    path: Path

    @property
    def model(self) -> Path:
        """The trained checkpoint, an ordinary Hugging Face folder."""
        return model_folder(self.path)

    @property
    def summary(self) -> dict[str, Any]:
        """Headline numbers of the finished run."""
        summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return summary

    def evaluations(self) -> list[dict[str, Any]]:
        """All evaluation records, in order."""
        return [r for r in RunDir.open(self.path).read_metrics() if r["kind"] == "eval"]

    def evaluate(
        self, *, tasks: int = 0, samples: int = 0, env: str | Environment | None = None
    ) -> EvalResult:
        """The held-out result of the trained model.

        Without arguments, what the run measured at its end; otherwise the model is loaded and
        evaluated again, with this many tasks and samples per task.
        """
        ended = [r for r in self.evaluations() if r["phase"] == "after"]
        if ended and not tasks and not samples and env is None:
            return read_result(ended[-1])
        config = RunDir.open(self.path).load_config()
        settings = config.evaluation.model_copy(
            update={
                "tasks": tasks or config.evaluation.chosen.held_out or 100,
                "samples": samples or config.evaluation.samples,
            }
        )
        changed = {"model": str(self.model), "evaluation": settings}
        # which checkpoints stay, and by which benchmark, is of no interest here
        config = config.model_copy(update=changed | {"checkpoint": CheckpointSettings()})
        return evaluate(config, env=env, logs=self.path / "logs")

    def report(self) -> Path:
        """Write report.html and return its path."""
        from posttrain.report import write_report

        return write_report(self.path)


def evaluate(config: GrpoConfig, *, logs: Path, env: str | Environment | None = None) -> EvalResult:
    """Evaluate ``config.model`` on the environment's held-out tasks, without a learner.

    By an engine of its own: a server that ``rollout.urls`` names has the weights of its last sync.
    """
    if config.rollout.urls:
        own = config.rollout.model_copy(update={"urls": (), "engine": "auto"})
        config = config.model_copy(update={"rollout": own})
    return evaluate_model(prepare(config, env, None), logs)


def _tree(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments as the nested tree that TOML gives."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Settings):
            value = value.model_dump()
        if name == "rollout" and isinstance(value, str):
            value = {"engine": value}
        if name in GrpoSettings.model_fields:
            tree.setdefault("grpo", {})[name] = value
        elif name == "grpo":
            tree.setdefault("grpo", {}).update(value)
        else:
            tree[name] = dict(value) if isinstance(value, Mapping) else value
    if "algorithm" in tree:
        tree["algorithm"] = {k: _choice(v) for k, v in tree["algorithm"].items()}
    return tree


def _choice(value: Any) -> Any:
    """A function of the user's becomes the reference by which a rank finds it."""
    if callable(value):
        return choice_of(value)
    if isinstance(value, Mapping) and callable(value.get("name")):
        return {**value, "name": choice_of(value["name"])}
    return value
