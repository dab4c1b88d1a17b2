"""Decides which rows of tokens a training step sees, as a pure function of (settings, seed, step).

So the cursor of the data is the number of the step: a resume, another number of ranks or a second
look at step 12,345 need no state, cost O(1) and give the same rows.

- A *row* is a window of a source's tokens, the n-th starts at n x length: documents stand end to
  end with an end token after each, and the ones at the edges are cut. What is left at the end of a
  source is shorter than a row and not read.
- Within a source a pass over the rows is a keyed permutation, another one each epoch. Phases of the
  same row length go on where the one before stopped; at a new length a new pass begins.
- Which source a row is from is decided block by block, with exact shares (``mixture.py``).

Left out: packing by length (best fit), which cuts fewer documents but needs an index of all of
them; with attention across documents switched off, a cut one is two shorter ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pretrain.checked_settings import CheckedSettings
from pretrain.data.mixture import Mixture, capped
from pretrain.data.permutation import permuted
from pretrain.data.shards import Shards, TokenSource, join
from pretrain.errors import UsageError
from pretrain.packing import IGNORE

Ints = NDArray[np.int64]


class Phase(CheckedSettings):
    """A stretch of the training with a mix, a row length and a budget of its own."""

    tokens: int = Field(gt=0, description="budget: a multiple of rows x length")
    rows: int = Field(gt=0, description="rows of a step, of all ranks together")
    length: int = Field(gt=1, description="tokens of a row")
    mix: dict[str, float] = Field(
        default={"*": 1.0},
        description="language/domain, also with * -> weight; the first that fits a source counts",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="sources of one pattern share its weight as tokens^(1/temperature)",
    )
    name: str = ""

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        step = self.rows * self.length
        if self.tokens % step:
            below = self.tokens // step * step
            near = " or ".join(str(tokens) for tokens in (below, below + step) if tokens)
            raise ValueError(
                f"tokens = {self.tokens} is no whole number of steps of {self.rows} x "
                f"{self.length} tokens: {near} would be"
            )
        if not self.mix or min(self.mix.values()) <= 0:
            raise ValueError("mix needs at least one source, and every weight above 0")
        return self

    @property
    def steps(self) -> int:
        return self.tokens // (self.rows * self.length)


class StreamSettings(CheckedSettings):
    """What is read, in which shares, and for how long."""

    shards: tuple[str, ...] = Field(min_length=1, description="folders of tokenised shards")
    phases: tuple[Phase, ...] = Field(min_length=1, description="one after the other")
    max_epochs: dict[str, float] = Field(
        default={},
        description="language/domain, also with * -> how often its tokens may be read in all",
    )
    across_documents: bool = Field(
        default=False, description="whether a document attends to those before it in the row"
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step. Labels stand under their own tokens: the shift is inside the model."""

    ids: Ints  # [rows, length]
    labels: Ints  # [rows, length]; the ids, or IGNORE
    positions: Ints  # [rows, length]; restart at each document, or 0..length-1
    source: NDArray[np.int16]  # [rows]; index into Stream.sources


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """A phase as it will run: arrays are over the stream's sources [S]."""

    phase: Phase
    first_step: int
    mixture: Mixture
    available: Ints  # rows that each source has at this length
    begun: Ints  # rows of this length that earlier phases read

    @property
    def shares(self) -> NDArray[np.float64]:
        return np.asarray(self.mixture.counts / self.mixture.rows)

    @property
    def epochs(self) -> NDArray[np.float64]:
        """How often this phase reads each source."""
        return np.asarray(self.mixture.counts / np.maximum(self.available, 1))


class Stream:
    """The rows of every step of a training run."""

    def __init__(
        self, settings: StreamSettings, *, seed: int, tokenizer: str = "", verify: bool = True
    ) -> None:
        """Raises UsageError, before anything runs: shards that are not as they were written or of
        another ``tokenizer`` (a folder), a mix without a source, too few tokens.

        ``verify`` reads all shards once; of several ranks one is enough.
        """
        shards = [Shards.open(folder, verify=verify) for folder in settings.shards]
        self._sources: list[TokenSource] = list(join(shards).values())
        if tokenizer:
            shards[0].check_tokenizer(tokenizer)
        self.settings, self.seed = settings, seed
        self.sources = tuple(source.name for source in self._sources)
        self.source_tokens = tuple(source.tokens for source in self._sources)
        self.vocabulary, self.end_id = shards[0].vocabulary, shards[0].end_id
        self.plans = _plans(settings, self._sources)
        self.fingerprint = _fingerprint(settings, seed, shards)

    @property
    def steps(self) -> int:
        """Of all phases together."""
        last = self.plans[-1]
        return last.first_step + last.phase.steps

    def plan_of(self, step: int) -> PhasePlan:
        """The phase that a step, counted from 0, is part of. Raises UsageError past the end."""
        if not 0 <= step < self.steps:
            raise UsageError(f"there is no step {step}: the phases have {self.steps}")
        return next(plan for plan in reversed(self.plans) if plan.first_step <= step)

    def tokens_before(self, step: int) -> int:
        """Tokens of all the steps before this one."""
        return sum(
            min(max(step - plan.first_step, 0), plan.phase.steps)
            * (plan.phase.rows * plan.phase.length)
            for plan in self.plans
        )

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The rows of a step, counted from 0, or some of them: a rank needs only its own.

        Raises UsageError past the end.
        """
        plan = self.plan_of(step)
        length = plan.phase.length
        chosen = np.arange(plan.phase.rows, dtype=np.int64)[rows]
        places = (step - plan.first_step) * plan.phase.rows + chosen
        sources, numbers = plan.mixture.at(places, self.seed, "mixture", plan.first_step)
        found = self._rows(plan, sources, numbers)
        ids, positions = np.empty((2, len(chosen), length), np.int64)
        labels = np.empty_like(ids)
        for i, (source, row) in enumerate(zip(sources, found, strict=True)):
            ids[i], starts = self._sources[source].read(int(row) * length, length)
            cut = starts[:0] if self.settings.across_documents else starts
            positions[i] = _positions(length, cut)
            labels[i] = ids[i]
            labels[i, cut] = IGNORE  # it would be predicted from the last token of a neighbour
        return Batch(ids, labels, positions, sources.astype(np.int16))

    def _rows(self, plan: PhasePlan, sources: Ints, numbers: Ints) -> Ints:
        """[n] Rows of the sources' tokens, for the numbers among the rows the phase takes."""
        epochs, places = np.divmod(plan.begun[sources] + numbers, plan.available[sources])
        rows = np.empty_like(places)
        for source, epoch in sorted({*zip(sources.tolist(), epochs.tolist(), strict=True)}):
            here = (sources == source) & (epochs == epoch)
            key = (self.seed, self.sources[source], plan.phase.length, epoch)
            rows[here] = permuted(places[here], int(plan.available[source]), *key)
        return rows


def _positions(length: int, starts: Ints) -> Ints:
    """0, 1, 2, ... from the row's beginning and from each start on."""
    begin = np.zeros(length, np.int64)
    begin[starts] = starts
    return np.arange(length, dtype=np.int64) - np.maximum.accumulate(begin)


def _plans(settings: StreamSettings, sources: Sequence[TokenSource]) -> tuple[PhasePlan, ...]:
    tokens = np.array([source.tokens for source in sources], np.int64)
    names = [source.name for source in sources]
    caps = _caps(settings.max_epochs, names)
    read = np.zeros(len(sources), np.int64)  # tokens, by all phases so far
    begun: dict[int, Ints] = {}  # length -> rows
    plans: list[PhasePlan] = []
    for number, phase in enumerate(settings.phases, 1):
        where = f"phase {number}" + (f" ({phase.name})" if phase.name else "")
        available = tokens // phase.length
        wanted = _shares(phase, names, tokens, available, where)
        rows = phase.steps * phase.rows
        allowed = np.where(available > 0, caps, 0) * available
        left = np.maximum(np.minimum(allowed, 2.0**62) - read / phase.length, 0)
        limits = np.floor(left) / rows
        shares = capped(wanted, [float(limit) for limit in limits])
        if shares is None:
            raise UsageError(
                f"{where} wants {phase.tokens} tokens, and max_epochs leaves "
                f"{int(limits.sum() * phase.tokens)}: shorten it, raise max_epochs, or add data"
            )
        limited = [share >= limit for share, limit in zip(shares, limits, strict=True)]
        mixture = Mixture.of(shares, rows, limited)
        earlier = begun.get(phase.length, np.zeros(len(sources), np.int64))
        first = plans[-1].first_step + plans[-1].phase.steps if plans else 0
        plans.append(PhasePlan(phase, first, mixture, available, earlier))
        begun[phase.length] = earlier + mixture.counts
        read = read + mixture.counts * phase.length
    return tuple(plans)


def _shares(
    phase: Phase, names: Sequence[str], tokens: Ints, available: Ints, where: str
) -> list[float]:
    """Share of each source; a pattern's weight is divided among its sources by their tokens."""
    shares, free = np.zeros(len(names)), np.ones(len(names), bool)
    for pattern, weight in phase.mix.items():
        fits = np.array([fnmatchcase(name, pattern) for name in names]) & free
        free &= ~fits
        if not (readable := fits & (available > 0)).any():
            short = f" with a row of {phase.length} tokens" if fits.any() else ""
            raise UsageError(
                f"{where}: mix has {pattern!r}, and no source{short} is left for it; there are "
                + ", ".join(f"{n} ({t} tokens)" for n, t in zip(names, tokens, strict=True))
            )
        sizes = np.where(readable, tokens.astype(float) ** (1 / phase.temperature), 0.0)
        shares += weight * sizes / sizes.sum()
    there = int(available[shares > 0].sum())
    if there < phase.rows:
        raise UsageError(
            f"{where}: the corpus is smaller than one batch: {there} rows of {phase.length} "
            f"tokens, and a step takes {phase.rows}"
        )
    return [float(share) for share in shares / shares.sum()]


def _caps(max_epochs: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    caps = np.full(len(names), np.inf)
    for pattern, most in reversed(list(max_epochs.items())):
        fits = [fnmatchcase(name, pattern) for name in names]
        if most <= 0 or not any(fits):
            raise UsageError(
                f"max_epochs: {pattern!r} = {most}: a number above 0 for a source there is "
                f"({', '.join(names)})"
            )
        caps[fits] = most
    return caps


def _fingerprint(settings: StreamSettings, seed: int, shards: Sequence[Shards]) -> str:
    """The same for streams that give the same rows."""
    checksums = [
        (name, one["ids"], one["offsets"])
        for opened in shards
        for name, source in opened.manifest["sources"].items()
        for one in source["files"]
    ]
    decides = [settings.model_dump(exclude={"shards"}), seed, checksums]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
