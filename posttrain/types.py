"""The nouns of the loop and the two protocols everything else is plugged into.

An episode flows through them in this order:

    Request -> Completion -> Turn -> Rollout -> Group -> Sample -> Batch

Example, one two-turn episode (``m`` marks what the model wrote, ``.`` what it did not):

    turn 0   prompt  <user>2+2?</user>            completion  4<end>
    turn 1   prompt  <user>2+2?</user>4<end>
                     <user>sure?</user>           completion  yes<end>
    sample   tokens  <user>2+2?</user> 4<end> <user>sure?</user> yes<end>
             mask    .................. mmmmmm .................. mmmmmmmm

Turn 1's prompt begins with turn 0's prompt and completion, so the two become one sample. If an
environment rewrites history the prompt no longer begins so, and the episode forks into two samples
(``batching.samples_of``). Token ids are the ones the engine sampled, never decoded and re-encoded.

Axis suffixes: ``_P`` prompts, ``_G`` group members, ``_T`` tokens, ``_B`` rows, ``_V`` vocabulary.
Log-probs are *processed*: those of the distribution that was sampled from, temperature applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from envs import EndReason, Message
from rewards import Score

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


GREEDY = -1  # sample_index of a group's greedy rollout


class FinishReason(StrEnum):
    """Why the engine stopped writing."""

    STOP = "stop"  # an end token
    LENGTH = "length"  # max_tokens, or the model's window


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn.

    There is no top-p, top-k or penalty on purpose: each of them makes the engine's distribution
    differ from the learner's, so that the importance ratio would be biased.
    """

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy, allowed for evaluation only
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")


@dataclass(frozen=True, slots=True)
class Request:
    """One completion asked of an engine; the same request on the same weights may be sent again."""

    request_id: str  # names the request in logs and error messages
    prompt_ids: Ints  # [T]
    sampling: Sampling
    seed: int  # derived from (run seed, step, prompt, sample)
    step: int = 0  # where requests have to wait, those of older steps go first


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine wrote: ids, their log-probs and the weight version that wrote each of them."""

    token_ids: Ints  # [T], includes the end token when there is one
    logprobs: Floats  # [T]
    weight_versions: Ints  # [T]
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids), len(self.logprobs), len(self.weight_versions)}
        if len(lengths) != 1:
            raise ValueError(f"Completion arrays differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Turn:
    """Everything the model saw, and what it then wrote."""

    prompt_ids: Ints  # [T]
    completion: Completion


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished episode with its score."""

    rollout_id: str  # "<step>-<prompt>-<sample>"
    task_id: str
    sample_index: int  # position in its group, or GREEDY
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]  # the whole conversation, as text
    score: Score
    end_reason: EndReason
    generation_s: float = 0.0  # seconds spent waiting for the engine
    reward_s: float = 0.0  # seconds spent in the environment and its rewards
    turn_values: tuple[float, ...] = ()  # what each turn earned beside the outcome
    info: Mapping[str, float] = field(default_factory=dict)  # the environment's numbers, summed

    @property
    def n_completion_tokens(self) -> int:
        return sum(len(turn.completion) for turn in self.turns)

    @property
    def text(self) -> str:
        """What the model wrote last."""
        return next(
            (str(m["content"]) for m in reversed(self.messages) if m["role"] == "assistant"), ""
        )


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one prompt in one step."""

    step: int
    prompt_index: int  # position of the prompt in its step
    rollouts: tuple[Rollout, ...]  # [G], ordered by sample_index
    greedy: Rollout | None = None  # the baseline's, where the advantage asks for one (ReMax)

    @property
    def values(self) -> list[float | None]:
        """Rewards [G]; None where a sample could not be judged."""
        return [rollout.score.value for rollout in self.rollouts]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training row. All arrays are [T] and aligned with ``token_ids``.

    ``logprobs[t]`` belongs to ``token_ids[t]``: the log-prob of writing it after ``token_ids[:t]``.
    Where ``loss_mask`` is False, logprobs, advantages and weight_versions are 0 and unused.
    ``values`` and ``returns`` are there where a critic is trained: what it said of
    ``token_ids[:t]``, and what it should have said. ``reference`` is there where the reference's
    log-probs come from a server.
    """

    token_ids: Ints
    loss_mask: Bools  # True where the model wrote the token
    logprobs: Floats  # the engine's
    advantages: Floats
    weight_versions: Ints
    rollout_id: str
    values: Floats | None = None
    returns: Floats | None = None
    reference: Floats | None = None

    def __post_init__(self) -> None:
        arrays = (self.loss_mask, self.logprobs, self.advantages, self.weight_versions)
        if any(len(array) != len(self.token_ids) for array in arrays):
            raise ValueError(f"Sample {self.rollout_id}: arrays differ in length")
        if len(self.token_ids) and self.loss_mask[0]:
            raise ValueError(f"Sample {self.rollout_id}: the first token has nothing before it")

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Several samples laid end to end; what one forward and backward pass sees.

    All arrays are [T] but ``lengths`` [S], whose sum is T. ``position_ids`` restart at each sample.
    """

    token_ids: Ints
    position_ids: Ints
    loss_mask: Bools
    logprobs: Floats
    advantages: Floats
    lengths: Ints
    values: Floats | None = None
    returns: Floats | None = None
    reference: Floats | None = None

    def __post_init__(self) -> None:
        n = int(self.lengths.sum())
        arrays = (self.token_ids, self.position_ids, self.loss_mask, self.logprobs, self.advantages)
        if any(len(array) != n for array in arrays):
            raise ValueError(
                f"PackedRow: lengths sum to {n}, arrays have {[len(a) for a in arrays]}"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step: for each learner rank, the rows it walks through.

    Every rank has the same number of rows (a row without samples is padding), because under
    ZeRO-3 each forward pass is a collective. The loss of the step is the sum over all rows of all
    ranks over ``denominator``.
    """

    step: int
    rows: tuple[tuple[PackedRow, ...], ...]  # [rank][micro step]
    members: tuple[tuple[tuple[int, ...], ...], ...]  # which of the packed samples are in each row
    denominator: float
    n_tokens: int  # that carry a loss, in all rows
    train_policy: bool = True  # False while only the critic learns


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published set of weights and the proof to check it with."""

    version: int
    # file transport: a safetensors file, or a folder with an adapter; None: sent over a collective
    path: Path | None
    probe_ids: Ints  # [T]
    probe_logprobs: Floats  # [T-1], of probe_ids[1:], at temperature 1, under exactly these weights
    gap_allowance: float = 1.0  # multiplies sync.max_probe_gap; the canary's weights are rough

    @property
    def is_adapter(self) -> bool:
        return self.path is not None and self.path.is_dir()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the learner says of one optimiser step."""

    metrics: Mapping[str, Any]  # loss, grad_norm, entropy, kl, ...; lists where they are by layer
    skipped: bool = False  # a non-finite loss or gradient norm: no weight was changed
    reason: str = ""


class Generate(Protocol):
    """Whatever turns token ids into more token ids."""

    async def generate(self, request: Request) -> Completion: ...


class Engine(Generate, Protocol):
    """A Generate with a life cycle, and with weights that can be replaced."""

    name: str  # "vllm" | "embedded"
    transport: str  # "file" | "nccl": how it takes weights
    replays: bool  # the same requests, issued in the same order, give the same tokens bit for bit

    @property
    def urls(self) -> Sequence[str]:
        """Of its servers; none for an engine in this process."""
        ...

    @property
    def restarts(self) -> int:
        """Of its servers, since the engine was made."""
        ...

    @property
    def busy_s(self) -> float:
        """Seconds with a request running, since the engine was made; a mean over its servers."""
        ...

    async def start(self) -> None: ...

    def admit(self, episodes: int) -> None:
        """Say that this many episodes are about to start; each calls ``leave`` when it ends.

        An engine that batches in lockstep waits until every admitted episode has asked for
        tokens, so that the composition of a batch does not depend on timing.
        """
        ...

    def leave(self) -> None: ...

    async def sync(self, snapshot: Snapshot) -> SyncReport:
        """Replace the weights by the snapshot's, all-or-nothing on each replica, and prove it."""
        ...

    async def logprobs(self, token_ids: Ints, temperature: float) -> Floats:
        """Log-probs of ``token_ids[1:]`` under the current weights, [T-1]."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one weight sync did; ``probe_gap`` is the mean |engine - learner| of log-probs."""

    version: int
    seconds: float
    probe_gap: float
    restarts: int = 0  # replicas that had to be restarted and refitted on the way


class Learner(Protocol):
    """Holds the weights being trained and the optimiser. One command at a time."""

    @property
    def world_size(self) -> int:
        """Ranks, or groups of ranks that share rows: what a batch is divided over."""
        ...

    @property
    def busy_s(self) -> float:
        """Seconds with a command running, since the learner was made."""
        ...

    async def start(self) -> None: ...

    async def choices(self) -> dict[str, Any]:
        """How precision and memory are spent; see ``engine_settings``."""
        ...

    async def train(self, batch: Batch) -> StepResult: ...

    async def examine(self, batch: Batch, what: str) -> list[list[Floats]]:
        """[rank][row] -> [N]: of each token with a loss, in order, what is said of it.

        ``what`` is "values" (the critic's), or log-probs: of the start policy ("reference"), of
        the weights as they are ("policy").
        """
        ...

    async def logprobs(self, sequences: Sequence[Ints], temperature: float) -> list[Floats]:
        """For each sequence, the log-probs of ``sequence[1:]``."""
        ...

    async def attach(self, urls: Sequence[str]) -> None:
        """Join the engine's servers for collective weight transfer; only for ``nccl``."""
        ...

    async def publish(self, version: int, folder: Path, *, perturb: float = 0.0) -> Snapshot:
        """Write the weights for the engines to ``folder``, with the probe's log-probs.

        ``perturb`` > 0 publishes weights moved by seeded noise of that relative size instead, and
        leaves the learner's own untouched: the start-up canary (see ``posttrain.job``).
        """
        ...

    async def save(self, folder: Path) -> None:
        """Copy the state into memory; it is written below ``folder`` while training goes on."""
        ...

    async def saved(self, folder: Path) -> None:
        """Wait until what ``save`` copied is on the disk. Raises RunError when it can't be."""
        ...

    async def load(self, folder: Path) -> None: ...

    async def export(self, folder: Path) -> None:
        """Write an ordinary Hugging Face checkpoint with its tokenizer."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EvalResult:
    """mean@1 reward and pass@k over held-out tasks, with a 95 % interval over tasks."""

    n_tasks: int
    samples_per_task: int
    mean_reward: float
    accuracy: float  # share of samples whose outcome is correct
    accuracy_low: float
    accuracy_high: float
    pass_at_k: Mapping[int, float]
    mean_length: float  # completion tokens
    outcomes: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
