"""Checkpoints: what is kept, what counts as whole, and how a save overlaps the run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.config import KeepSettings, make_config, settings_table
from posttrain.errors import RunError, UsageError
from posttrain.learner.inline import InlineLearner
from posttrain.preflight import check_settings
from posttrain.resumption import CHANGEABLE, changed_config, check_length
from posttrain.storage.checked_files import CheckedFile, begin, digest_of, fault_of, write_all
from posttrain.storage.checkpoint import Checkpoints, Start, find_start, list_checkpoints
from posttrain.storage.run_dir import RunDir


class TwoRanks(InlineLearner):
    """Writes what it is told to write, rank by rank and when told to."""

    world_size = 2

    def __init__(self) -> None:
        super().__init__(job(), [])
        self._learner = object()  # it has been started
        self.folder = Path()
        self.saves = 0

    async def save(self, folder: Path) -> None:
        self.folder, self.saves = folder, self.saves + 1
        for rank in (0, 1):
            begin(folder, rank)

    def write(self, rank: int, text: str = "weights") -> None:
        path = self.folder / "deepspeed" / f"{rank}.pt"
        write_all(self.folder, rank, {path: lambda file: file.write(text.encode())})


def job(**sections):
    return make_config({"model": "m", "env": "e"} | sections)


def manager(folder: Path, learner: TwoRanks, accuracy=None, **keep) -> Checkpoints:
    return Checkpoints(
        folder, KeepSettings(**keep), learner, lambda: accuracy or {}, lambda step: {"loop": step}
    )


def saved(folder: Path, *steps: int, accuracy=None, **keep) -> list[int]:
    """The steps that are there after these were saved in turn."""

    async def run() -> None:
        learner = TwoRanks()
        checkpoints = manager(folder, learner, accuracy, **keep)
        for step in steps:
            await checkpoints.save(step)
            learner.write(0, f"state after {step}")
            learner.write(1)
        await checkpoints.settle()

    asyncio.run(run())
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder)]


# what is kept


def test_the_newest_are_kept(tmp_path: Path) -> None:
    assert saved(tmp_path, 5, 10, 15, 20, last=2) == [15, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000015", "step-000020"]


def test_the_best_is_kept_too_and_of_equals_the_newest(tmp_path: Path) -> None:
    accuracy = {0: 0.9, 5: 0.4, 10: 0.7, 15: 0.7, 20: 0.6, 30: 0.1}  # 25 was not evaluated
    assert saved(tmp_path, 5, 10, 15, 20, 25, 30, accuracy=accuracy, last=1, best=1) == [15, 30]
    assert saved(tmp_path, 35, accuracy=accuracy, last=1, best=2) == [15, 30, 35]


def test_keep_is_a_number_or_a_table() -> None:
    assert job(checkpoint={"keep": 3}).checkpoint.kept == KeepSettings(last=3, best=0)
    table = job(checkpoint={"keep": {"best": 1}}).checkpoint
    assert table.kept == KeepSettings(last=2, best=1)
    with pytest.raises(UsageError, match=r"^setting 'checkpoint.keep': .*greater than or equal"):
        job(checkpoint={"keep": 0})
    with pytest.raises(UsageError, match="'checkpoint.keep.lst'; checkpoint.keep has last, best"):
        job(checkpoint={"keep": {"lst": 1}})


@pytest.mark.parametrize("evaluation", [{"every": 0}, {"every": 25, "tasks": 0}, {"every": 3}])
def test_a_best_that_would_never_be_measured_is_bad_input(evaluation: dict) -> None:
    sections = {"grpo": {"steps": 50}, "checkpoint": {"keep": {"best": 1}}}  # every 25
    with pytest.raises(UsageError, match=r"set evaluation\.every to checkpoint\.every = 25"):
        check_settings(job(evaluation=evaluation, **sections))
    assert check_settings(job(evaluation={"every": 5}, **sections)).evaluation.every == 5


# what counts as whole


def test_a_manifest_holds_what_the_run_goes_on_from(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    manifest = json.loads((tmp_path / "step-000005" / "checkpoint.json").read_text())
    files = manifest.pop("files")
    assert manifest == {"step": 5, "weight_version": 5, "loop": 5}
    assert sorted(files) == ["deepspeed/0.pt", "deepspeed/1.pt"]
    assert files["deepspeed/1.pt"] == {
        "bytes": 7,  # b"weights", by sha256sum:
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = [
    ("learner/deepspeed/1.pt", truncate, r"deepspeed/1.pt has 6 bytes of 7"),
    ("learner/deepspeed/0.pt", flip, r"deepspeed/0.pt differs from its checksum"),
    ("learner/deepspeed/0.pt", Path.unlink, r"deepspeed/0.pt is missing"),
    ("checkpoint.json", truncate, r"checkpoint.json can't be read"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGES, ids=[d[1].__name__ for d in DAMAGES])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    tmp_path: Path, name: str, damage, told: str
) -> None:
    saved(tmp_path, 5, 10)
    damage(tmp_path / "step-000010" / name)
    (tmp_path / "step-000015.0a1b2c3d.tmp" / "learner").mkdir(parents=True)  # a killed run's
    start = find_start(tmp_path)
    assert (start.step, start.learner) == (5, tmp_path / "step-000005" / "learner")
    (note,) = start.notes
    assert told in note and "step-000010" in note and "going on from step-000005" in note
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000005", "step-000010.damaged"]
    assert find_start(tmp_path) == Start(5, tmp_path / "step-000005" / "learner")  # told once
    assert saved(tmp_path, 10) == [5, 10]  # the step is written again


def test_when_all_are_damaged_nothing_is_touched(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    for step in (5, 10):
        flip(tmp_path / f"step-{step:06d}" / "learner/deepspeed/0.pt")
    for _ in range(2):  # it does not begin anew the second time
        with pytest.raises(RunError, match="every checkpoint is damaged(.|\n)*step-000005"):
            find_start(tmp_path)
    assert len(list_checkpoints(tmp_path)) == 2


def test_without_a_checkpoint_a_run_starts_at_its_beginning(tmp_path: Path) -> None:
    assert find_start(tmp_path) == Start(0, None)


# how a save overlaps the run


def test_a_save_is_seen_only_when_every_rank_has_written(tmp_path: Path) -> None:
    async def run() -> None:
        learner = TwoRanks()
        checkpoints = manager(tmp_path, learner)
        await checkpoints.save(5)  # returns while nothing is written
        learner.write(0)
        await asyncio.sleep(0.1)
        checkpoints.check()
        assert list_checkpoints(tmp_path) == []
        second = asyncio.create_task(checkpoints.save(10))  # waits: one is on its way
        await asyncio.sleep(0.1)
        assert learner.saves == 1
        learner.write(1)
        await second
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000005"]
        assert learner.saves == 2
        learner.write(0)
        learner.write(1)
        await checkpoints.settle()
        await checkpoints.save(10)  # it is there
        assert learner.saves == 2

    asyncio.run(run())


def test_a_save_that_failed_is_told_and_leaves_the_ones_before(tmp_path: Path) -> None:
    saved(tmp_path, 5)

    async def run() -> None:
        learner = TwoRanks()
        checkpoints = manager(tmp_path, learner)
        await checkpoints.save(10)
        learner.write(0)

        def full(file: CheckedFile) -> None:
            file._file.close()
            # every write: no space left
            file._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
            assert file.write(b"half of it") == 10  # torch's writer must not see an exception
            file.write(b"and the rest")

        write_all(learner.folder, 1, {learner.folder / "deepspeed/1.pt": full})
        await asyncio.wait([checkpoints._writing], timeout=30)
        with pytest.raises(RunError, match="rank 1 could not write.*No space left on device"):
            checkpoints.check()
        with pytest.raises(RunError, match=rf"posttrain resume {tmp_path.parent}"):
            await checkpoints.save(15)
        await checkpoints.close()  # quiet: it was told

    asyncio.run(run())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_learner_that_ends_does_not_keep_the_run_waiting(tmp_path: Path) -> None:
    async def run() -> None:
        learner = TwoRanks()
        checkpoints = manager(tmp_path, learner)
        await checkpoints.save(10)
        learner.write(0)
        learner._learner = None
        with pytest.raises(RunError, match="not written to its end: the learner was closed"):
            await asyncio.wait_for(checkpoints.settle(), 5)

    asyncio.run(run())


def test_a_checked_file_is_hashed_as_it_is_written(tmp_path: Path) -> None:
    with CheckedFile(tmp_path / "a") as file:
        for part in (b"one", memoryview(b"two"), bytearray(b"")):
            file.write(part)
    assert file.digest == digest_of(tmp_path / "a")
    assert fault_of(tmp_path, {"a": file.digest}) == ""


# other settings on a resume


def test_a_resume_may_change_placement_and_length_alone() -> None:
    config = job(learner={"lora": {"rank": 4}}, checkpoint={"keep": 3})
    changed, changes = changed_config(
        config,
        {"learner": {"ranks": 2, "zero_stage": 2}, "grpo": {"steps": 200}, "seed": config.seed},
    )
    assert changes == {
        "grpo.steps": (100, 200),
        "learner.ranks": (1, 2),
        "learner.zero_stage": (0, 2),
    }
    assert changed.learner.lora == config.learner.lora and changed.learner.ranks == 2
    assert changed_config(config, {}) == (config, {})
    with pytest.raises(UsageError, match=r"can't change grpo\.group_size, learner\.learning_rate"):
        changed_config(config, {"learner": {"learning_rate": 1e-3}, "grpo": {"group_size": 4}})
    with pytest.raises(UsageError, match=r"did you mean 'learner\.ranks'"):
        changed_config(config, {"learner": {"rnks": 2}})
    names = {name for name, _, _ in settings_table()}
    assert {one for one in CHANGEABLE if not one.endswith("*")} <= names


def test_what_a_resume_changed_is_kept_with_the_settings(tmp_path: Path) -> None:
    config = job()
    with RunDir.create(tmp_path / "run", config) as run:
        changed, changes = changed_config(config, {"learner": {"ranks": 2}})
        run.change_config(changed, changes, 50)
        longer, changes = changed_config(changed, {"grpo": {"steps": 300}})
        run.change_config(longer, changes, 75)
    again = RunDir.open(tmp_path / "run")
    assert again.load_config() == longer
    kept = [(entry["step"], entry["settings"]) for entry in again.manifest()["changes"]]
    assert kept == [
        (50, {"learner.ranks": {"before": 1, "after": 2}}),
        (75, {"grpo.steps": {"before": 100, "after": 300}}),
    ]


def test_the_command_line_refuses_what_would_be_another_run(tmp_path: Path, capsys) -> None:
    with RunDir.create(tmp_path / "run", job()):
        pass
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert cli.main(["resume", str(tmp_path / "run"), "learner.learning_rate=1.0"]) == 2
    assert "can't change learner.learning_rate" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    with pytest.raises(UsageError, match="grpo.steps = 100, and the run's checkpoint has 120"):
        check_length(job(), 120)


def test_a_checkpoint_of_an_older_version_is_not_passed_over(tmp_path):
    (tmp_path / "checkpoints" / "step-000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000004" / "loop.json").write_text("{}")
    with pytest.raises(RunError, match="step-000004 was written by an older version"):
        find_start(tmp_path / "checkpoints")
