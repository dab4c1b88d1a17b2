"""The stream: each row once an epoch, exact shares, phases to the token, any step at any time."""

from __future__ import annotations

import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.shards import Shards
from pretrain.data.stream import IGNORE, Batch, Stream, StreamSettings
from pretrain.errors import UsageError
from tests.pretrain.token_corpus import make_shards, tokenizer_folder

SIZES = {"de/web": 1_200, "en/code": 600, "en/web": 2_400}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return make_shards(tmp_path_factory.mktemp("stream"), SIZES)


def stream(made: Shards, *phases: dict[str, Any], seed: int = 0, **settings: Any) -> Stream:
    values = {"shards": [str(made.folder)], "phases": phases, **settings}
    return Stream(StreamSettings(**values), seed=seed)


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(
        (one.ids, one.labels, one.positions, one.source),
        (other.ids, other.labels, other.positions, other.source),
        strict=True,
    )
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("rows", "length"), [(5, 24), (7, 20), (4, 60)])
def test_every_row_is_read_once_an_epoch(shards: Shards, rows: int, length: int) -> None:
    available = sum(size // length for size in SIZES.values())
    steps = 2 * available // rows
    one = stream(shards, {"tokens": steps * rows * length, "rows": rows, "length": length})
    seen: Counter[tuple[int, bytes]] = Counter()
    for step in range(steps):
        batch = one.batch(step)
        seen.update((int(s), ids.tobytes()) for s, ids in zip(batch.source, batch.ids, strict=True))
    counts = Counter(seen.values())
    assert len(seen) == available  # every row of every source is of other tokens
    assert set(counts) <= {1, 2, 3}
    per_source = np.bincount([source for source, _ in seen.elements()])
    for source, plan_count in enumerate(one.plans[0].mixture.counts):
        assert per_source[source] == plan_count
        rows_there = SIZES[one.sources[source]] // length
        passes = {n for (s, _), n in seen.items() if s == source}
        whole, rest = divmod(int(plan_count), rows_there)
        assert passes <= ({whole, whole + 1} if rest else {whole})


def test_two_epochs_have_other_orders(shards: Shards) -> None:
    one = stream(shards, {"tokens": 2400, "rows": 50, "length": 24, "mix": {"de/web": 1.0}})
    first, second = one.batch(0).ids, one.batch(1).ids
    assert not np.array_equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_shares_are_exact_within_a_block(shards: Shards) -> None:
    mix = {"en/code": 0.5, "de/*": 0.3, "*": 0.2}
    one = stream(shards, {"tokens": 12 * 3000, "rows": 100, "length": 12, "mix": mix})
    drawn = np.concatenate([one.batch(step).source for step in range(30)])
    for block in range(3):
        counts = np.bincount(drawn[1000 * block : 1000 * (block + 1)])
        assert dict(zip(one.sources, counts.tolist(), strict=True)) == {
            "de/web": 300, "en/code": 500, "en/web": 200,
        }  # fmt: skip


def test_temperature_flattens_the_shares_within_a_pattern(shards: Shards) -> None:
    phase = {"tokens": 12_000, "rows": 10, "length": 12}
    plain, flat = (
        stream(shards, {**phase, "mix": {"*/web": 1.0}, "temperature": t}) for t in (1.0, 2.0)
    )
    assert plain.plans[0].shares[[0, 2]] == pytest.approx([1 / 3, 2 / 3], abs=1e-3)
    root = 2**0.5
    assert flat.plans[0].shares[[0, 2]] == pytest.approx(
        [1 / (1 + root), root / (1 + root)], abs=1e-3
    )


PHASES = (
    {"tokens": 480, "rows": 4, "length": 24, "mix": {"en/web": 1.0}},
    {"tokens": 960, "rows": 2, "length": 48, "mix": {"de/web": 1.0}},
    {"tokens": 240, "rows": 5, "length": 24, "mix": {"en/*": 1.0}},
)


@settings(max_examples=25)
@given(st.integers(0, 16), st.integers(0, 5))
def test_a_step_is_the_same_after_any_start(shards: Shards, step: int, seed: int) -> None:
    one, other = (stream(shards, *PHASES, seed=seed) for _ in range(2))
    for before in range(step):
        one.batch(before)
    assert same(one.batch(step), other.batch(step))


def test_another_seed_gives_other_rows(shards: Shards) -> None:
    one, other = (stream(shards, *PHASES, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.batch(0).ids, other.batch(0).ids)
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == stream(shards, *PHASES).fingerprint


def test_phases_change_at_exactly_their_tokens(shards: Shards) -> None:
    one = stream(shards, *PHASES)
    assert one.steps == 5 + 10 + 2
    shapes = [one.batch(step).ids.shape for step in range(one.steps)]
    assert shapes == [(4, 24)] * 5 + [(2, 48)] * 10 + [(5, 24)] * 2
    ends = np.cumsum([0, *(rows * length for rows, length in shapes)])
    assert [one.tokens_before(step) for step in range(one.steps + 1)] == ends.tolist()
    assert [one.tokens_before(step) for step in (5, 15, 17)] == [480, 1440, 1680]
    with pytest.raises(UsageError, match="no step 17: the phases have 17"):
        one.batch(17)


def test_a_later_phase_goes_on_where_an_earlier_one_stopped(shards: Shards) -> None:
    """20 rows of en/web in the first phase; the third takes 80 % of its ten rows from there."""
    one = stream(shards, *PHASES)
    steps = [one.batch(step) for step in (*range(5), 15, 16)]
    web = one.sources.index("en/web")
    rows = [
        row.tobytes()
        for batch in steps
        for row, source in zip(batch.ids, batch.source, strict=True)
        if source == web
    ]
    assert len(rows) == 28
    assert len(set(rows)) == 28


def test_a_cap_bounds_the_epochs_over_all_phases(shards: Shards) -> None:
    phases = [
        {"tokens": 2_400, "rows": 10, "length": 12, "mix": {"en/code": 1.0, "*": 1.0}},
        {"tokens": 2_400, "rows": 10, "length": 24, "mix": {"en/code": 1.0, "*": 1.0}},
    ]
    one = stream(shards, *phases, max_epochs={"en/code": 2.0})
    code = one.sources.index("en/code")
    # 600 tokens: 1,200 are allowed, all of which the first phase takes
    tokens = [int(plan.mixture.counts[code]) * plan.phase.length for plan in one.plans]
    assert tokens == [1_200, 0]
    assert [int(plan.mixture.counts.sum()) for plan in one.plans] == [200, 100]
    with pytest.raises(
        UsageError, match=r"phase 2 wants 2400 tokens, and max_epochs leaves 18\d\d"
    ):
        stream(shards, *phases, max_epochs={"*": 1.0})


def test_documents_apart(shards: Shards) -> None:
    """Rows of 20 over documents of 12: positions restart, and no loss at a document's first."""
    one = stream(shards, {"tokens": 400, "rows": 20, "length": 20, "mix": {"de/web": 1.0}})
    batch = one.batch(0)
    for ids, labels, positions in zip(batch.ids, batch.labels, batch.positions, strict=True):
        starts = [0, *(place + 1 for place in np.flatnonzero(ids == one.end_id) if place < 19)]
        bounds = [*starts, 20]
        expected = [range(stop - start) for start, stop in pairwise(bounds)]
        assert positions.tolist() == [place for piece in expected for place in piece]
        unlearnt = np.flatnonzero(labels == IGNORE).tolist()
        assert unlearnt in (starts, starts[1:])  # a row may begin inside a document
        assert (labels[labels != IGNORE] == ids[labels != IGNORE]).all()


def test_documents_together(shards: Shards) -> None:
    phase = {"tokens": 400, "rows": 20, "length": 20}
    batch = stream(shards, phase, across_documents=True).batch(0)
    assert (batch.labels == batch.ids).all()
    assert (batch.positions == np.arange(20)).all()


def test_a_rank_reads_its_rows_alone(shards: Shards) -> None:
    one = stream(shards, *PHASES)
    whole, part = one.batch(2), one.batch(2, slice(1, 4, 2))
    assert part.ids.tolist() == whole.ids[1:4:2].tolist()
    assert part.source.dtype == np.int16


def test_a_model_reads_each_document_as_if_alone(shards: Shards) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    batch = stream(shards, {"tokens": 80, "rows": 2, "length": 40}).batch(0)
    with torch.no_grad():
        packed = model(
            input_ids=torch.from_numpy(batch.ids),
            position_ids=torch.from_numpy(batch.positions),
            use_cache=False,
        ).logits
        for row in range(2):
            bounds = [*np.flatnonzero(batch.positions[row] == 0).tolist(), 40]
            assert len(bounds) > 3
            for start, stop in pairwise(bounds):
                alone = model(input_ids=torch.from_numpy(batch.ids[row : row + 1, start:stop]))
                assert float((packed[row, start:stop] - alone.logits[0]).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ({"tokens": 100}, r"phases\.0: tokens = 100 is no whole number .*: 96 or 192 would be"),
        ({"mix": {"fr/*": 1.0}}, r"phase 1: mix has 'fr/\*', .* de/web \(1200 tokens\)"),
        ({"mix": {"*": 0.0}}, "every weight above 0"),
        ({"length": 4800, "tokens": 19_200}, "no source with a row of 4800 tokens"),
        ({"rows": 200, "tokens": 4800}, "smaller than one batch: 175 rows of 24 tokens"),
        ({"lenght": 24}, r"phases\.0: lenght: Extra"),
    ],
)
def test_bad_settings_are_said_before_anything_runs(
    shards: Shards, phase: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        stream(shards, {"tokens": 96, "rows": 4, "length": 24, **phase})


def test_a_bad_cap_and_another_tokenizer_are_refused(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_epochs: 'fr/web'"):
        stream(shards, *PHASES, max_epochs={"fr/web": 2.0})
    from pretrain.tokenizer import train_tokenizer

    train_tokenizer(["other"] * 9, vocab_size=270).save_pretrained(tmp_path)
    settings = StreamSettings(shards=[str(shards.folder)], phases=PHASES)
    Stream(settings, seed=0, tokenizer=str(tokenizer_folder()))
    with pytest.raises(UsageError, match="another tokenizer"):
        Stream(settings, seed=0, tokenizer=str(tmp_path))


def test_folders_are_joined(shards: Shards, tmp_path: Path) -> None:
    best = make_shards(tmp_path, {"en/best": 240, "en/web": 240})
    folders = [str(shards.folder), str(best.folder)]
    phase = {"tokens": 240, "rows": 10, "length": 24}
    one = stream(shards, phase, shards=folders)
    assert one.sources == ("de/web", "en/best", "en/code", "en/web")
    assert one.plans[0].available.tolist() == [50, 10, 25, 110]


def test_the_settings_of_the_page_are_settings() -> None:
    page = (Path(__file__).parents[3] / "docs" / "pretraining.md").read_text()
    values = tomllib.loads(page.split("```toml\n")[1].split("```")[0])
    assert [phase.steps for phase in StreamSettings(**values).phases] == [4_500, 500]
