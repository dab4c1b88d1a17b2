"""Rollouts to samples, samples to rows, rows to a file: nothing lost, nothing twice, one order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import EndReason
from posttrain.batching import attention_at, load_batch, pack, samples_of, save_batch
from posttrain.types import Batch, Completion, FinishReason, PackedRow, Rollout, Sample, Turn
from rewards import Outcome, Score


def turn(prompt: list[int], written: list[int], version: int = 3) -> Turn:
    n = len(written)
    completion = Completion(
        token_ids=np.array(written, np.int64),
        logprobs=-np.arange(1, n + 1, dtype=np.float32),
        weight_versions=np.full(n, version, np.int64),
        finish_reason=FinishReason.STOP,
    )
    return Turn(np.array(prompt, np.int64), completion)


def rollout(*turns: Turn) -> Rollout:
    return Rollout(
        rollout_id="0-0-0",
        task_id="t",
        sample_index=0,
        turns=turns,
        messages=(),
        score=Score(1.0, Outcome.CORRECT),
        end_reason=EndReason.DONE,
    )


def test_a_continued_conversation_is_one_sample() -> None:
    episode = rollout(turn([1, 2], [7, 8], version=3), turn([1, 2, 7, 8, 5], [9], version=4))
    (sample,) = samples_of(episode, 0.5)
    assert sample.token_ids.tolist() == [1, 2, 7, 8, 5, 9]
    assert sample.loss_mask.tolist() == [False, False, True, True, False, True]
    assert sample.logprobs.tolist() == [0, 0, -1, -2, 0, -1]
    assert sample.advantages.tolist() == [0, 0, 0.5, 0.5, 0, 0.5]
    assert sample.weight_versions.tolist() == [0, 0, 3, 3, 0, 4]


@pytest.mark.parametrize("prompt", [[1, 2, 7], [1, 2, 7, 6, 5], [4]])
def test_a_rewritten_history_forks(prompt: list[int]) -> None:
    first, second = samples_of(rollout(turn([1, 2], [7, 8]), turn(prompt, [9])), -1.0)
    assert first.token_ids.tolist() == [1, 2, 7, 8]
    assert second.token_ids.tolist() == [*prompt, 9]
    assert second.loss_mask.tolist() == [False] * len(prompt) + [True]


def test_an_episode_in_which_nothing_was_written_has_no_sample() -> None:
    assert samples_of(rollout(turn([1, 2], [])), 1.0) == []


def test_a_completion_without_a_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing before it"):
        samples_of(rollout(turn([], [3])), 1.0)


def make_sample(i: int, length: int, prompt: int) -> Sample:
    """A sample whose every token is unlike any other sample's."""
    where = np.arange(length)
    mask = where >= prompt
    return Sample(
        token_ids=1000 * i + where,
        loss_mask=mask,
        logprobs=np.where(mask, -(i + where / 100), 0).astype(np.float32),
        advantages=np.where(mask, i + 0.5, 0).astype(np.float32),
        weight_versions=np.zeros(length, np.int64),
        rollout_id=str(i),
    )


sizes = st.lists(
    st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    min_size=1,
    max_size=30,
)


def samples_in(batch: Batch) -> list[tuple]:
    """Every sample of a batch as (ids, mask, log-probs, advantages), in order of ids."""
    found = []
    for row in (row for rows in batch.rows for row in rows):
        start = 0
        for length in row.lengths:
            part = slice(start, start + length)
            arrays = (row.token_ids, row.loss_mask, row.logprobs, row.advantages)
            found.append(tuple(tuple(array[part].tolist()) for array in arrays))
            assert row.position_ids[part].tolist() == list(range(length))
            start += length
    return sorted(found)


@given(sizes, st.integers(1, 64), st.integers(1, 4))
def test_packing_keeps_every_token_once(sizes, budget: int, ranks: int) -> None:
    samples = [make_sample(i, length, prompt) for i, (length, prompt) in enumerate(sizes)]
    batch = pack(samples, budget, ranks, step=7)
    expected = sorted(
        tuple(
            tuple(array.tolist()) for array in (s.token_ids, s.loss_mask, s.logprobs, s.advantages)
        )
        for s in samples
    )
    assert samples_in(batch) == expected
    assert batch.n_tokens == sum(length - prompt for length, prompt in sizes)
    assert batch.step == 7
    assert sorted(i for rank in batch.members for row in rank for i in row) == list(
        range(len(samples))
    )


@given(sizes, st.integers(1, 64), st.integers(1, 4))
def test_rows_respect_the_budget_and_ranks_get_as_many(sizes, budget: int, ranks: int) -> None:
    samples = [make_sample(i, length, prompt) for i, (length, prompt) in enumerate(sizes)]
    batch = pack(samples, budget, ranks, step=0)
    assert len(batch.rows) == ranks
    assert len({len(rows) for rows in batch.rows}) == 1
    for row in (row for rows in batch.rows for row in rows):
        assert len(row.lengths) <= 1 or row.lengths.sum() <= budget


@given(sizes, st.integers(1, 64), st.integers(1, 4))
def test_packing_depends_on_the_order_of_its_input_only(sizes, budget: int, ranks: int) -> None:
    samples = [make_sample(i, length, prompt) for i, (length, prompt) in enumerate(sizes)]
    first, second = (pack(samples, budget, ranks, step=0) for _ in range(2))
    assert [[row.token_ids.tolist() for row in rows] for rows in first.rows] == [
        [row.token_ids.tolist() for row in rows] for rows in second.rows
    ]


def test_best_fit_needs_no_more_rows_than_it_must() -> None:
    # 6 + 4, 5 + 5, 7 + 3 fill three rows of 10 exactly.
    samples = [make_sample(i, n, 1) for i, n in enumerate([4, 7, 5, 3, 6, 5])]
    batch = pack(samples, 10, 1, step=0)
    assert [int(row.lengths.sum()) for row in batch.rows[0]] == [10, 10, 10]


def test_two_ranks_share_what_would_fit_one_row() -> None:
    batch = pack([make_sample(i, 10, 1) for i in range(6)], 1000, 2, step=0)
    assert [[int(row.lengths.sum()) for row in rows] for rows in batch.rows] == [[30], [30]]


def test_a_rank_without_samples_gets_an_empty_row() -> None:
    batch = pack([make_sample(0, 10, 1)], 1000, 2, step=0)
    assert sorted(len(row.token_ids) for rows in batch.rows for row in rows) == [0, 10]


def test_a_sample_longer_than_the_budget_has_its_own_row() -> None:
    batch = pack([make_sample(0, 30, 1), make_sample(1, 5, 1), make_sample(2, 4, 1)], 10, 1, step=0)
    assert sorted(row.lengths.tolist() for row in batch.rows[0]) == [[5, 4], [30]]


@pytest.mark.parametrize("arguments", [([], 10, 1), ([make_sample(0, 4, 4)], 10, 1)])
def test_nothing_to_learn_is_an_error(arguments) -> None:
    with pytest.raises(ValueError, match="step 5 has . samples and no token to learn from"):
        pack(*arguments, step=5)


def arrays_of(row: PackedRow) -> list[tuple[str, bytes]]:
    names = ("token_ids", "position_ids", "loss_mask", "logprobs", "advantages", "lengths")
    return [(str(getattr(row, name).dtype), getattr(row, name).tobytes()) for name in names]


def test_a_batch_survives_its_file_bit_for_bit(tmp_path: Path) -> None:
    samples = [make_sample(i, n, 2) for i, n in enumerate([4, 7, 5, 3, 6])]
    samples[0].logprobs[2:] = [np.float32(0.1), np.nan]
    batch = pack(samples, 8, 2, step=3)
    save_batch(batch, tmp_path / "batch.safetensors")
    again = load_batch(tmp_path / "batch.safetensors")
    assert (again.step, again.n_tokens, again.denominator) == (3, batch.n_tokens, batch.denominator)
    assert again.members == batch.members and again.train_policy
    for rows, rows_again in zip(batch.rows, again.rows, strict=True):
        assert [arrays_of(row) for row in rows] == [arrays_of(row) for row in rows_again]
    assert [path.name for path in tmp_path.iterdir()] == ["batch.safetensors"]


def test_a_rank_reads_its_own_rows(tmp_path: Path) -> None:
    batch = pack([make_sample(i, 6, 2) for i in range(5)], 8, 2, step=3)
    save_batch(batch, tmp_path / "b")
    mine = load_batch(tmp_path / "b", only_rank=1)
    assert mine.rows[0] == ()
    assert [arrays_of(row) for row in mine.rows[1]] == [arrays_of(row) for row in batch.rows[1]]


AT = 8192  # tokens at which attention takes as long as the linear layers; a 0.6 B model's


def imbalance(lengths, ranks: int, attention_at: float) -> float:
    """The busiest rank's cost over the mean, minus 1."""
    samples = [make_sample(i, int(n), 1) for i, n in enumerate(lengths)]
    batch = pack(samples, 16_384, ranks, 0, attention_at=attention_at)
    costs = [sum(n + n * n / AT for row in rows for n in row.lengths) for rows in batch.rows]
    return max(costs) / (sum(costs) / ranks) - 1


def test_ranks_get_equal_work_with_attention_counted() -> None:
    """Answers of 50 to 16,000 tokens, most of them short: 256 samples for 2 to 8 ranks."""
    rng = np.random.default_rng(0)
    counted, ignored = [], []
    for _ in range(20):
        lengths = np.clip(rng.lognormal(6.5, 1.3, 256), 50, 16_000)
        ranks = int(rng.choice([2, 4, 8]))
        counted.append(imbalance(lengths, ranks, AT))
        ignored.append(imbalance(lengths, ranks, np.inf))
    assert max(counted) < 0.01 and max(ignored) > 0.1


def test_where_attention_takes_as_long_as_the_linear_layers(checkpoint: Path) -> None:
    # H 64, I 128, two heads of 32 and one key-value head: 64 (2 x 64 + 2 x 32 + 3 x 128) / 64
    assert attention_at(str(checkpoint)) == 576
