"""What every advantage, every loss and every preset must hold, through the parts of a real step.

Episodes of two turns go through ``Credit``, ``pack``, ``RowTensors`` and ``policy_loss``; only the
model is replaced, by a table of logits in float64 that looks at the token before. That ranks of
DeepSpeed average as ``gradient`` does here is shown by test_learner.py, with one algorithm.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import EndReason
from posttrain.advantages import ADVANTAGES, TokenRewards
from posttrain.algorithm import Algorithm
from posttrain.batching import pack
from posttrain.config import GrpoConfig, make_config
from posttrain.learner.row_tensors import RowTensors
from posttrain.losses import LOSSES, policy_loss
from posttrain.presets import PRESETS
from posttrain.step import Credit
from posttrain.types import GREEDY, Batch, Completion, FinishReason, Group, Rollout, Sample, Turn
from rewards import Outcome, Score

WORDS = 7
OWN: dict[str, dict[str, Any]] = {  # settings without which an advantage cannot be used here
    "pass_at_k": {"advantage": {"name": "pass_at_k", "k": 2}},
    "rejection": {"loss": "sft"},
    "online_dpo": {"loss": "reinforce"},
    "distill": {"advantage": {"name": "distill", "teacher": "http://teacher"}},
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    **{f"advantage {name}": {"advantage": name} | OWN.get(name, {}) for name in ADVANTAGES},
    **{f"loss {name}": {"advantage": "dr_grpo", "loss": name} for name in LOSSES},
    **{f"preset {name}": {"preset": name} for name in PRESETS},
    "preset distill": {"preset": "distill"} | OWN["distill"],
}


def table(seed: int, scale: float = 0.5) -> Tensor:
    """Logits [before, next]. The engine's, 0, and the learner's are near each other."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(WORDS, WORDS, generator=generator, dtype=torch.float64)
    base = torch.Generator().manual_seed(99)
    shared = torch.randn(WORDS, WORDS, generator=base, dtype=torch.float64)
    return shared + scale * noise


ENGINE, REFERENCE, TEACHER = table(0, 0.02), table(1, 0.2), table(2)


def written(logits: Tensor, ids: Any) -> np.ndarray:
    """The log-prob of each token after the one before it, [T]; 0 for the first."""
    ids = torch.as_tensor(np.asarray(ids))
    found = torch.log_softmax(logits, -1)[ids[:-1], ids[1:]]
    return np.append(0.0, found.numpy()).astype(np.float32)


class Models:
    """Learner and servers: what they are asked they read from their tables."""

    world_size = 1

    def __init__(self, policy: Tensor) -> None:
        self._tables = {"policy": policy, "reference": REFERENCE}

    async def examine(self, batch: Batch, what: str) -> list[list[np.ndarray]]:
        def answer(row: Any) -> np.ndarray:
            if what == "values":
                return (row.token_ids[row.loss_mask] / WORDS).astype(np.float32)
            return written(self._tables[what], row.token_ids)[row.loss_mask]

        return [[answer(row) for row in rank] for rank in batch.rows]

    async def logprobs(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        return [written(TEACHER, ids) for ids in sequences]


def episode(prompt: int, sample: int, value: float | None) -> Rollout:
    """Two turns of two to five tokens, with three tokens of the environment between them."""
    rng = np.random.default_rng([prompt, abs(sample)])
    ids, turns = np.array([prompt, 1, 2]), []
    for _ in range(2):
        answer = rng.integers(0, WORDS, rng.integers(2, 6))
        logprobs = written(ENGINE, np.append(ids[-1], answer))[1:]
        versions = np.zeros(len(answer), np.int64)
        turns.append(Turn(ids, Completion(answer, logprobs, versions, FinishReason.STOP)))
        ids = np.concatenate([ids, answer, [3, 4, 5]])
    outcome = Outcome.ERROR if value is None else Outcome.WRONG
    return Rollout(
        f"0-{prompt}-{sample}", "task", sample, tuple(turns), (), Score(value, outcome),
        EndReason.DONE, turn_values=(0.25 * sample, 0.0),
    )  # fmt: skip


GROUPS = [
    Group(
        0, p, tuple(episode(p, i, value) for i, value in enumerate(values)), episode(p, GREEDY, 0.4)
    )
    for p, values in enumerate([[1.0, 0.0, 0.5, 1.0], [0.0, 1.0, None, 0.25, 1.0]])
]


@cache
def config_of(name: str) -> GrpoConfig:
    grpo = {"max_refills": 0, "max_invalid_share": 0.5}
    return make_config({"model": "m", "env": "e", "algorithm": ALGORITHMS[name], "grpo": grpo})


def batch_of(name: str, policy: Tensor) -> Batch:
    """The step's batch, of one row."""
    config = config_of(name)
    algorithm, models = Algorithm.of(config.algorithm), Models(policy)
    servers: Any = dict.fromkeys(algorithm.servers, models)
    credit = Credit(config, algorithm, models, servers)  # type: ignore[arg-type]
    found = asyncio.run(credit.batch(0, GROUPS))
    assert found is not None
    return found


def cut(batch: Batch, rows: list[int]) -> Batch:
    """The samples of a batch of one row as so many rows for each rank, none of them empty."""
    ((row,),) = batch.rows
    ends = np.cumsum(row.lengths)[:-1]
    arrays = [
        np.split(a, ends) for a in (row.token_ids, row.loss_mask, row.logprobs, row.advantages)
    ]
    samples = [
        Sample(*one, np.zeros(len(one[0]), np.int64), "") for one in zip(*arrays, strict=True)
    ]
    for tokens in range(int(row.lengths.max()), int(row.lengths.sum())):
        found = pack(samples, tokens, len(rows), 0, batch.denominator)
        if [len(rank) for rank in found.rows] == rows and all(map(all, found.members)):
            return found
    raise AssertionError(f"no budget makes rows of {rows}")


def gradient(name: str, batch: Batch, policy: Tensor) -> tuple[float, Tensor]:
    """(loss, its gradient): the mean over ranks of what each rank's rows add up to."""
    algorithm = Algorithm.of(config_of(name).algorithm)
    logits = policy.clone().requires_grad_()
    ranks, total = len(batch.rows), 0.0
    for row in (row for rank in batch.rows for row in rank):
        tensors = RowTensors(row, torch.device("cpu"), share_prompts=True)
        before, targets = tensors.inputs[3]
        before = tensors.inputs[0][before]
        log_all = torch.log_softmax(logits[before], -1)
        reference = torch.log_softmax(REFERENCE, -1)[before, targets]
        tokens = tensors.tokens(
            log_all.gather(1, targets[:, None])[:, 0],
            -(log_all.exp() * log_all).sum(-1),
            reference if algorithm.reference else None,
        )
        loss = policy_loss(tokens, algorithm.parts)[0] * (ranks / batch.denominator)
        (loss / ranks).backward()
        total += loss.item() / ranks
    assert logits.grad is not None
    return total, logits.grad


START = table(3, 0.05)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_how_a_step_is_cut_into_ranks_and_rows_changes_no_gradient(name: str) -> None:
    """One rank with four rows, two with two, and one row, which has other filling too."""
    batch = batch_of(name, START)
    whole = gradient(name, batch, START)
    assert whole[1].abs().max() > 1e-4
    for rows in ([4], [2, 2]):
        value, found = gradient(name, cut(batch, rows), START)
        assert value == pytest.approx(whole[0], rel=1e-12, abs=1e-15)
        torch.testing.assert_close(found, whole[1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_the_model_did_not_write_changes_no_gradient(name: str) -> None:
    batch = batch_of(name, START)

    def spoilt(row: Any) -> Any:
        nan = np.full(len(row.token_ids), np.nan, np.float32)
        names = ("logprobs", "advantages", "values", "returns", "reference")
        there = {n: v for n in names if (v := getattr(row, n)) is not None}
        changed = {n: np.where(row.loss_mask, v, nan) for n, v in there.items()}
        return dataclasses.replace(row, **changed)

    rows = tuple(tuple(map(spoilt, rank)) for rank in batch.rows)
    value, found = gradient(name, dataclasses.replace(batch, rows=rows), START)
    whole = gradient(name, batch, START)
    assert value == whole[0] and torch.equal(found, whole[1])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_down_the_gradient_favours_what_had_an_advantage(name: str) -> None:
    """sum_t A_t log pi(o_t) rises."""
    batch = batch_of(name, START)

    def credited(logits: Tensor) -> float:
        return sum(
            float((written_64(logits, row.token_ids) * row.advantages)[row.loss_mask].sum())
            for rank in batch.rows
            for row in rank
        )

    _, slope = gradient(name, batch, START)
    step = 1e-3 * slope / slope.norm()
    assert credited(START - step) > credited(START) + 1e-6


def written_64(logits: Tensor, ids: np.ndarray) -> np.ndarray:
    found = torch.log_softmax(logits, -1)[torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])]
    return np.append(0.0, found.numpy())


# what each token advantage ascends, and what it does not look at

RAISES = {"gae": "rewards", "process": "rewards", "distill": "teacher_logprobs"}


def test_every_token_advantage_is_in_the_list() -> None:
    assert set(RAISES) == {a for a in ADVANTAGES if "tokens" in ADVANTAGES.resolve(a).needs}


@pytest.mark.parametrize("name", RAISES)
def test_a_token_that_is_rewarded_more_has_a_larger_advantage(name: str) -> None:
    one = TokenRewards(
        np.array([0.0, 0.5, 0.0, 1.0]), np.array([True, True, False, True]), np.full(4, -1.0),
        np.array([0.4, 0.3, 0.0, 0.2]), np.full(4, -1.5),
    )  # fmt: skip
    advantage = ADVANTAGES.resolve(name)
    base = advantage(one)
    for t in (0, 1, 3):
        more = getattr(one, RAISES[name]) + 0.125 * (np.arange(4) == t)
        found = advantage(dataclasses.replace(one, **{RAISES[name]: more}))
        assert found[t] > base[t]
        assert found[t + 1 :].tolist() == base[t + 1 :].tolist()  # none for what came before it
        assert (found >= base).all()


# golden steps: the losses of ten steps of SGD from START, at full precision

GOLDEN_PATH = Path(__file__).parent / "golden_algorithms.json"
GOLDEN = json.loads(GOLDEN_PATH.read_text()) if GOLDEN_PATH.exists() else {}


def ten_steps(name: str) -> list[float]:
    """Advantages are asked for anew at each step, of the same episodes."""
    policy, losses = START.clone(), []
    for _ in range(10):
        value, slope = gradient(name, batch_of(name, policy), policy)
        policy = policy - 0.5 * slope
        losses.append(value)
    return losses


@pytest.mark.parametrize("name", ALGORITHMS)
def test_ten_steps_are_what_they_were(name: str) -> None:
    assert ten_steps(name) == pytest.approx(GOLDEN[name], rel=1e-10, abs=1e-13)


def test_golden_steps_are_of_the_algorithms_there_are() -> None:
    assert GOLDEN.keys() == ALGORITHMS.keys()
    assert all(len(set(losses)) == 10 for losses in GOLDEN.values())
