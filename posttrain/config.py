"""The settings of a GRPO job: one frozen tree, under 60 leaves, each with a sentence.

Written three ways with the same names: keyword arguments in Python, a TOML file, ``key=value`` on
the command line. Nothing writes to a config after it was made; the run directory keeps it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
)

from posttrain.errors import UsageError

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Choice = str | dict[str, Any]  # "name", or {"name": "name", "argument": value, ...}


class Settings(BaseModel):
    """Base of every section: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


SettingsT = TypeVar("SettingsT", bound=Settings)


class GrpoSettings(Settings):
    """Size and length of the job."""

    steps: Count = Field(100, description="optimiser steps")
    prompts_per_step: Count = Field(8, description="prompts in one step")
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="completions per prompt")
    max_lag: Annotated[int, Field(ge=0)] = Field(
        0,
        description="steps a rollout may be older than the weights it trains; 0: synchronous",
    )
    max_turns: Count = Field(8, description="model turns in one episode")
    episode_timeout_s: Positive = Field(
        300.0, description="deadline of one environment or reward call"
    )
    max_invalid_share: Share = Field(
        0.5, description="stop when more than this share of a step's samples could not be judged"
    )
    max_refills: Annotated[int, Field(ge=0)] = Field(
        0,
        description="dynamic sampling: rounds of new prompts for groups of equal rewards; 0: off",
    )
    mask_truncated: bool = Field(
        False, description="completions cut at their length limit teach nothing"
    )
    startup_timeout_s: Positive = Field(
        300.0, description="deadline for a server, and for the learner, to be ready"
    )
    on_long_prompt: Literal["error", "drop"] = Field(
        "error", description="what to do with a prompt that leaves no room in the model's window"
    )


class AlgorithmSettings(Settings):
    """One advantage function, one loss function, and what is added to them.

    A choice is a name, a reference to a function of yours ("module:function" or
    "file.py:function"), or a table of one and its arguments: ``{name = "ppo_clip", high = 0.3}``.
    docs/algorithms.md has them all.
    """

    preset: str = Field("", description="fills what is not set here with a paper's values")
    advantage: Choice = Field("grpo", description="name in posttrain.advantages.ADVANTAGES")
    loss: Choice = Field("ppo_clip", description="name in posttrain.losses.LOSSES")
    correction: Choice = Field(
        "none", description="weights for what engine and learner disagree on; name in CORRECTIONS"
    )
    kl: Choice = Field("none", description="KL to the start policy; name in posttrain.losses.KLS")
    aggregation: Literal["token", "sequence", "fixed"] = Field(
        "token", description="what the loss is a mean over; fixed: sequences of max_tokens"
    )
    entropy_coef: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="weight of the entropy bonus"
    )
    sft_coef: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="weight of -log pi on samples whose advantage is positive"
    )


class RolloutSettings(Settings):
    """The engine that writes the completions."""

    engine: Literal["auto", "vllm", "embedded"] = Field(
        "auto", description="auto: vllm where installed"
    )
    max_tokens: Count = Field(64, description="longest completion of one turn, in tokens")
    temperature: Positive = Field(
        1.0, description="sampling temperature; the learner uses the same"
    )
    servers: Count = Field(1, description="vLLM servers to start on this machine")
    urls: tuple[str, ...] = Field(
        (), description="attach to these running servers instead of starting any"
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="precision of the engine")
    max_model_len: Annotated[int, Field(ge=0)] = Field(
        0, description="window in tokens; 0: the model's own, at most 4096"
    )
    max_concurrency: Count = Field(256, description="requests in flight at once, over all servers")
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="CPU threads per server; 0 divides the cores"
    )
    kv_cache_gib: Positive = Field(
        1.0, description="memory for the KV cache of each server, in GiB"
    )
    request_timeout_s: Positive = Field(600.0, description="deadline for one completion")


class LoraSettings(Settings):
    """Low-rank adapters (arXiv:2106.09685): W x + (alpha / rank) B A x; A and B are trained.

    One choice, written as one table: ``learner.lora = {rank = 16, alpha = 32}``.
    """

    rank: Count
    alpha: Count = 32
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # or names of linear layers
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # of an adapter's input, in training
    sync: Literal["adapter", "merged"] = "adapter"  # what travels to the engine
    bits: Literal[4] | None = None  # of the frozen weights: 4 is NF4 (QLoRA), none as they are

    @field_validator("targets")
    @classmethod
    def _names(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not targets:
            raise ValueError('no layer is named; write "all-linear" for every linear layer')
        return targets


class LearnerSettings(Settings):
    """DeepSpeed."""

    ranks: Annotated[int, Field(ge=0)] = Field(
        1, description="processes, over all machines; 0: one rank inside this process"
    )
    sequence_parallel: Count = Field(
        1, description="ranks that share each row, for long contexts; divides ranks"
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(0, description="ZeRO stage")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="precision of forward and backward"
    )
    lora: LoraSettings | None = Field(
        None, description="adapters: rank, alpha, targets, dropout, sync, bits; {} is off"
    )
    learning_rate: Positive = Field(2e-5, description="peak rate of AdamW")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        10, description="linear warm-up, in optimiser steps"
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.0, description="of AdamW")
    max_grad_norm: Positive = Field(1.0, description="gradients are clipped to this global norm")
    tokens_per_row: Count = Field(4096, description="packed tokens in one forward pass, per rank")
    memory_savings: tuple[Literal["checkpointing", "offload"], ...] = Field(
        (),
        description="checkpointing: activations are computed twice; offload: optimiser on the host",
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="CPU threads per rank; 0 divides the cores"
    )
    step_timeout_s: Positive = Field(1800.0, description="deadline of one command to the learner")

    @property
    def world_size(self) -> int:
        """Ranks, wherever they run."""
        return max(1, self.ranks)

    @property
    def data_parallel(self) -> int:
        """Ranks, or groups of ranks, that have rows of their own."""
        return self.world_size // self.sequence_parallel

    @property
    def stage(self) -> int:
        """The ZeRO stage that runs: in bfloat16, gradients are added up in float32 from 1 on."""
        return max(self.zero_stage, 1) if self.dtype == "bfloat16" else self.zero_stage

    @property
    def checkpointing(self) -> bool:
        return "checkpointing" in self.memory_savings

    @property
    def offload(self) -> bool:
        return "offload" in self.memory_savings

    @field_validator("lora", mode="before")
    @classmethod
    def _empty_is_off(cls, lora: Any) -> Any:
        return None if lora == {} else lora  # TOML has no word for nothing


class SyncSettings(Settings):
    """Weight sync and the log-prob contract."""

    transport: Literal["auto", "file", "nccl"] = Field(
        "auto", description="auto: nccl between GPUs, file otherwise"
    )
    max_probe_gap: Positive = Field(
        0.05,
        description="largest mean |engine - learner| log-prob gap, of syncs and real rollouts",
    )
    timeout_s: Positive = Field(120.0, description="deadline of one phase of a sync")


def _kind(value: Any) -> str:
    return "table" if isinstance(value, Mapping | Settings) else "number"


class TaskSettings(Settings):
    """What a run is evaluated on, one choice.

    ``evaluation.tasks = {held_out = 200, benchmarks = {gsm8k = 100}}``. Benchmarks are those of
    ``posttrain eval``, by name or ``NAME=FILE``, each with the number of rows that are asked: the
    first ones, under the first template, one greedy answer to each.
    """

    held_out: Annotated[int, Field(ge=0)] = 200  # of the run's own environment
    benchmarks: dict[str, Count] = Field(default_factory=dict)
    data: str | None = None  # folder with the benchmarks' files; else POSTTRAIN_DATA, or a hub
    max_tokens: Count | None = None  # of a benchmark's answers; else rollout.max_tokens


# Told apart by hand, so that a fault is told once and not for each of the two.
Tasks = Annotated[
    Annotated[int, Field(ge=0), Tag("number")] | Annotated[TaskSettings, Tag("table")],
    Discriminator(_kind),
]


class EvaluationSettings(Settings):
    """Evaluation of the run's weights: on its own held-out tasks, and on benchmarks."""

    tasks: Tasks = Field(
        200,
        description="held-out tasks, or {held_out = 200, benchmarks = {gsm8k = 100}}; 0: none",
    )
    samples: Count = Field(1, description="completions per task; pass@k is reported up to this k")
    every: Annotated[int, Field(ge=0)] = Field(
        0, description="also every this many steps; 0: only before and after"
    )
    temperature: Annotated[float, Field(ge=0.0)] = Field(1.0, description="0 is greedy")

    @property
    def chosen(self) -> TaskSettings:
        """``tasks`` as the table it is short for."""
        return (
            self.tasks
            if isinstance(self.tasks, TaskSettings)
            else TaskSettings(held_out=self.tasks)
        )


class KeepSettings(Settings):
    """Which checkpoints stay, one choice: ``checkpoint.keep = {last = 2, best = 1}``.

    Best is by the accuracy of the held-out evaluation at that step, or by that of the benchmark
    which ``by`` names; of equals the newest.
    """

    last: Count = 2
    best: Annotated[int, Field(ge=0)] = 0
    by: str = ""  # a benchmark of evaluation.tasks


Keep = Annotated[
    Annotated[Count, Tag("number")] | Annotated[KeepSettings, Tag("table")], Discriminator(_kind)
]


class CheckpointSettings(Settings):
    """What is kept to go on from."""

    every: Count = Field(25, description="steps between checkpoints")
    keep: Keep = Field(
        2, description="newest checkpoints kept, or {last = 2, best = 1}: also the most accurate"
    )

    @property
    def kept(self) -> KeepSettings:
        """``keep`` as the table it is short for."""
        return self.keep if isinstance(self.keep, KeepSettings) else KeepSettings(last=self.keep)


class GrpoConfig(Settings):
    """A whole job."""

    model: str = Field(description="checkpoint folder or hub name")
    env: str = Field(description="registered environment, reasoning_gym:<dataset>, or a data file")
    env_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of envs.load"
    )
    reward: tuple[str, ...] = Field(
        (), description="registered rewards; empty: the environment's own"
    )
    run_dir: str = Field("runs/grpo", description="new folder for everything the run leaves behind")
    seed: int = Field(0, description="decides tasks, sampling and order")
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(
        (), description="beside metrics.jsonl"
    )
    grpo: GrpoSettings = GrpoSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    rollout: RolloutSettings = RolloutSettings()
    learner: LearnerSettings = LearnerSettings()
    sync: SyncSettings = SyncSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> GrpoConfig:
    """The config of a GRPO job: ``read_tree`` and ``make_config``."""
    return make_config(read_tree(path, overrides))


def read_tree(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file and apply ``section.key=value`` overrides; nothing is checked yet.

    Values are TOML; a bare word that is not TOML is taken as a string. Raises UsageError.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(Path(path).read_text())
        except OSError as error:
            raise UsageError(f"can't read the config {path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _set(tree, override)
    return tree


def make_config(tree: Mapping[str, Any]) -> GrpoConfig:
    """A GRPO job from a tree of plain values, with its preset applied."""
    from posttrain.presets import apply_preset

    return checked(GrpoConfig, apply_preset(dict(tree)))


def change_config(
    config: GrpoConfig, tree: Mapping[str, Any]
) -> tuple[GrpoConfig, dict[str, tuple[Any, Any]]]:
    """The config with what ``tree`` says otherwise, and {setting: (before, after)}.

    Raises UsageError as ``make_config`` does.
    """
    before, after = config.model_dump(mode="json"), config.model_dump(mode="json")
    _merge(after, tree)
    changed = checked(GrpoConfig, after)
    after = changed.model_dump(mode="json")
    pairs = zip(_values(before), _values(after), strict=True)
    return changed, {name: (old, new) for (name, old), (_, new) in pairs if old != new}


def override_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """``section.key=value`` arguments as a tree."""
    return read_tree(None, overrides)


def checked(kind: type[SettingsT], tree: Mapping[str, Any]) -> SettingsT:
    """Check a tree of plain values.

    Raises UsageError with one line per fault; it names the setting, and for a misspelt one the
    nearest name.
    """
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        lines = [_explain(fault, kind) for fault in error.errors()]
        raise UsageError("\n".join(lines)) from error


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Sections are merged, settings replaced."""
    sections = {name.partition(".")[0] for name, _, _ in settings_table() if "." in name}
    for name, value in changes.items():
        if name in sections and isinstance(value, Mapping):
            tree[name] = tree[name] | dict(value)
        else:
            tree[name] = value


def _values(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(setting, value) of a whole config's tree."""
    for name, _, _ in settings_table():
        section, _, key = name.rpartition(".")
        yield name, (tree[section] if section else tree)[key]


def settings_table(kind: type[Settings] | None = None) -> list[tuple[str, Any, str]]:
    """Every setting of a job as (dotted name, default, description), in order."""
    return list(_leaves(kind or GrpoConfig, ""))


def _leaves(model: type[Settings], prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, spec in model.model_fields.items():
        kind = spec.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            default = (
                "required" if spec.is_required() else spec.get_default(call_default_factory=True)
            )
            yield f"{prefix}{name}", default, spec.description or ""


def _set(tree: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name.strip():
        raise UsageError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = name.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UsageError(f"{name}: {section} is a value, not a section")
    tree[key] = value


def _explain(fault: Mapping[str, Any], kind: type[Settings]) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part not in ("number", "table"))
    if fault["type"] == "extra_forbidden":
        names = [name for name, _, _ in settings_table(kind)]
        table = next((name for name in names if where.startswith(f"{name}.")), None)
        if table:
            return f"unknown setting {where!r}; {table} has {', '.join(_keys(kind, table))}"
        sections = sorted({name.rpartition(".")[0] for name in names} - {""})
        close = difflib.get_close_matches(where, [*names, *sections], n=1, cutoff=0.0)
        tail = where.rpartition(".")[2]
        same_key = [n for n in names if n.rpartition(".")[2] == tail]
        return f"unknown setting {where!r}; did you mean {(same_key or close)[0]!r}?"
    if fault["type"] == "missing":
        return f"setting {where!r} is required"
    return f"setting {where!r}: {fault['msg']}, got {fault['input']!r}"


def _keys(kind: type[Settings], table: str) -> list[str]:
    """The keys of a setting that is one table or something else."""
    spec: Any = kind
    for name in table.split("."):
        spec = spec.model_fields[name].annotation
    return [key for part in get_args(spec) for key in getattr(part, "model_fields", ())]
