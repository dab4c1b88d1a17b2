"""Two ranks do what one does, however a step is divided; and resumed, the same bit for bit.

All layouts share two launches: one trains them, another program's ranks resume them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.shards import Shards
from pretrain.training.checkpoints import written
from tests.pretrain.training.small_run import SHAPE, WEIGHTS, config, mixture, steps_of, trained

ROOT = Path(__file__).parents[3]
LAYOUTS = [
    *("zero_stage=0", "zero_stage=1", "zero_stage=2", "zero_stage=3"),
    *("sequence=2", "tensor=2", "pipeline=2"),
]
MIXTURE = "mixture"  # under ZeRO-2
STAGES = {"stages": False, "stages, tied": True}  # in bfloat16, four micro-batches


@pytest.fixture(scope="module")
def mixed(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts that one rank trains; model/ is what it starts from. Without balance,
    which each rank asks of its own tokens."""
    folder = tmp_path_factory.mktemp("mixed")
    mixture(shards, folder / "model", 0.0)
    trained(shards, folder / "run", model=str(folder / "model"), shape={})
    return folder


@pytest.fixture(scope="module")
def runs(shards: Shards, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each layout, trained, and once more from step 8; first.NAME are the weights of
    the former."""
    folder = tmp_path_factory.mktemp("runs")
    experts: dict[str, Any] = {"model": str(mixed / "model"), "shape": {}}
    # First: DeepSpeed's groups of a run with tensor or pipeline ranks outlive it in a process.
    trees = [config(shards, folder / MIXTURE, parallel__zero_stage=2, **experts)]
    for layout in LAYOUTS:
        name, _, value = layout.partition("=")
        tree = config(shards, folder / layout, **{f"parallel__{name}": int(value)})
        tree["report"] |= {"held_out": [str(shards.folder)], "evaluate_tokens": 600}
        trees.append(tree)
    for name, tied in STAGES.items():
        stages = {"parallel__pipeline": 2, "parallel__micro_tokens": 48}
        trees.append(config(shards, folder / name, **low(tied), **stages))
    (folder / "trees.json").write_text(json.dumps(trees))
    launch(folder / "trees.json")
    for name in (*LAYOUTS, MIXTURE, *STAGES):
        (folder / name / "final" / WEIGHTS).rename(folder / f"first.{name}")
        (written(folder / name / "checkpoints")[-1] / "checkpoint.json").write_text("{")
    launch(folder / "trees.json")
    return folder


def low(tied: bool) -> dict[str, Any]:
    return {"dtype": "bfloat16", "shape": SHAPE | {"tie_embeddings": tied}}


def launch(trees: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.pretrain.training.two_ranks", str(trees)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_do_what_one_does(whole: Path, runs: Path, layout: str) -> None:
    for what in ("loss", "grad_norm"):
        ours, others = ([r[what] for r in steps_of(out)] for out in (whole, runs / layout))
        assert ours == pytest.approx(others, rel=1e-3)
    scores = [
        {r["held_out"]: r["bits_per_byte"] for r in map(json.loads, lines) if "held_out" in r}
        for lines in (
            (out / "metrics.jsonl").read_text().splitlines() for out in (whole, runs / layout)
        )
    ]
    assert set(scores[0]) == {"en/web", "de/web", "all"}
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_train_a_mixture_as_one_does(mixed: Path, runs: Path) -> None:
    ours, others = (steps_of(out) for out in (mixed / "run", runs / MIXTURE))
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in others], rel=1e-3)
    for one, other in zip(ours, others, strict=True):  # of all ranks' tokens
        for mine, theirs in zip(one["expert_load"], other["expert_load"], strict=True):
            assert mine == pytest.approx(theirs, abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STAGES)
def test_stages_in_bfloat16_have_the_gradient_of_one_rank(
    shards: Shards, runs: Path, tmp_path: Path, name: str
) -> None:
    """The head's part of it included, which DeepSpeed clears where the loss lies outside."""
    one = steps_of(trained(shards, tmp_path / "run", **low(STAGES[name])).parent)
    two = steps_of(runs / name)
    assert one[0]["grad_norm"] == pytest.approx(two[0]["grad_norm"], rel=2e-3)
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=2e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*LAYOUTS, MIXTURE, *STAGES])
def test_resumed_by_other_ranks_it_is_the_same_bit_for_bit(runs: Path, name: str) -> None:
    assert len(steps_of(runs / name)) == 12
    assert (runs / name / "final" / WEIGHTS).read_bytes() == (runs / f"first.{name}").read_bytes()
