"""One step's work before there is any: the batch of real prompts with answers of a given length.

Decides the shape a plan reckons with: every group of the first step, each answer ``answer_tokens``
long (the longest allowed, unless said otherwise), random ids, packed as the learner will pack them.
Later turns, refills and samples that teach nothing are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.batching import pack
from posttrain.config import GrpoConfig
from posttrain.learner.memory import RowSize
from posttrain.types import Batch, Ints, Sample


@dataclass(frozen=True, slots=True)
class Workload:
    """A step as a batch, and its size."""

    batch: Batch
    prompt_ids: tuple[Ints, ...]  # [P] of the step
    answer_tokens: int
    samples: int

    @property
    def completion_tokens(self) -> int:
        return self.samples * self.answer_tokens

    @property
    def rows_per_rank(self) -> int:
        return len(self.batch.rows[0])


def workload(
    prompt_ids: Sequence[Ints], config: GrpoConfig, vocabulary: int, *, answer_tokens: int
) -> Workload:
    """The step of these prompts."""
    rng = np.random.default_rng(0)
    samples = []
    for number, prompt in enumerate(prompt_ids):
        for member in range(config.grpo.group_size):
            answer = rng.integers(0, vocabulary, answer_tokens)
            samples.append(_sample(np.asarray(prompt), answer, f"{number}-{member}", rng))
    batch = pack(samples, config.learner.tokens_per_row, config.learner.data_parallel, 0)
    return Workload(batch, tuple(prompt_ids), answer_tokens, len(samples))


def _sample(prompt: Ints, answer: Ints, name: str, rng: np.random.Generator) -> Sample:
    mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
    return Sample(
        token_ids=np.concatenate([prompt, answer]),
        loss_mask=mask,
        logprobs=np.where(mask, -5.0, 0.0).astype(np.float32),
        advantages=np.where(mask, rng.choice([-1.0, 1.0]), 0.0).astype(np.float32),
        weight_versions=np.zeros(len(mask), np.int64),
        rollout_id=name,
    )


def largest_row(batch: Batch, vocabulary: int) -> RowSize:
    """The row with the most tokens, as the model will see it."""
    import torch

    from posttrain.learner.row_tensors import RowTensors
    from posttrain.model.token_logprobs import chunk_for

    row = max((row for rows in batch.rows for row in rows), key=lambda row: len(row.token_ids))
    tensors = RowTensors(row, torch.device("cpu"), share_prompts=True)
    token_ids, _, layout, (before, _) = tensors.inputs
    chunk = chunk_for(vocabulary, "cuda" if torch.cuda.is_available() else "cpu")
    return RowSize(len(token_ids), len(layout.padded), len(before), chunk)
