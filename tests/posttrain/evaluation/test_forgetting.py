"""Benchmarks during training: their records, the alarm on a fall, and which checkpoint stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import envs
import posttrain
from posttrain.config import KeepSettings, make_config
from posttrain.console import benchmark_text
from posttrain.errors import UsageError
from posttrain.evaluation.forgetting import curves, falls
from posttrain.evaluation.light import light_suites
from posttrain.preflight import check_settings
from posttrain.report.charts import charts
from posttrain.report.hacking import watch
from posttrain.report.history import read_history
from posttrain.storage.checkpoint import checkpoint_step, list_checkpoints
from posttrain.storage.run_dir import RunDir
from tests.posttrain.documented import undocumented


def record(step: int, right: list[float | None], items: str = "a", **more: Any) -> dict[str, Any]:
    judged = [one for one in right if one is not None]
    accuracy = sum(judged) / len(judged) if judged else None
    about = {"kind": "benchmark", "step": step, "benchmark": "gsm8k", "n_tasks": len(right)}
    return about | {"accuracy": accuracy, "items": items, "per_task": right} | more


def right(n: int, of: int = 20) -> list[float | None]:
    """The first n of the items are correct."""
    return [1.0] * n + [0.0] * (of - n)


# the alarm


def test_a_fall_is_told_from_the_best_step_on_with_its_size() -> None:
    # ten items lost and none won: two of the 2 ** 10 ways to flip their signs are as far off
    records = [record(0, right(11)), record(20, right(15)), record(40, right(5))]
    (fall,) = falls(curves(records))
    assert (fall.benchmark, fall.start, fall.end) == ("gsm8k", 20, 40)
    assert (fall.before, fall.after, fall.test.difference) == (0.75, 0.25, -0.5)
    assert (fall.test.n_tasks, fall.test.p_value) == (20, 2 / 2**10)
    assert fall.test.low == -0.7  # the 2.5 % point of Binomial(20, 1/2) is 6, the 97.5 % one 14
    assert fall.test.high == -0.3
    assert fall.text.startswith(
        "Forgotten? gsm8k falls from 75.0% after step 20 to 25.0% after step 40: "
        "-50.0 points [-70.0, -30.0], p = 0.002, on the same 20 items."
    )


@pytest.mark.parametrize(
    "records",
    [
        [record(0, right(15)), record(20, right(6))],  # nine lost: p = 2 / 2 ** 9 = 0.0039
        [record(0, right(5)), record(20, right(15))],  # a rise
        [record(0, right(15)), record(20, right(5)), record(40, right(15))],  # found again
        [record(0, right(15))],
        [record(0, right(15), items="a"), record(20, right(5), items="b")],  # another file
        [record(0, right(15)), record(20, [None] * 20)],  # nothing was judged
        [],
    ],
)
def test_anything_else_is_no_alarm(records: list[dict[str, Any]]) -> None:
    assert falls(curves(records)) == []


def test_items_that_were_not_judged_both_times_are_left_out() -> None:
    best, last = [1.0] * 12 + [None], [None, *[0.0] * 12]
    (fall,) = falls(curves([record(0, best), record(20, last)]))
    assert (fall.test.n_tasks, fall.before, fall.after) == (11, 1.0, 0.0)


def test_of_one_step_the_last_record_holds_and_benchmarks_are_apart() -> None:
    other = [record(step, right(3)) | {"benchmark": "ifeval"} for step in (0, 20)]
    records = [record(20, right(5)), record(0, right(15)), *other, record(20, right(14))]
    found = curves(records)
    assert {name: [r["step"] for r in rs] for name, rs in found.items()} == {
        "gsm8k": [0, 20],
        "ifeval": [0, 20],
    }
    assert found["gsm8k"][1]["per_task"] == right(14)
    assert falls(found) == []


def test_the_watch_and_the_page_have_it(tmp_path: Path) -> None:
    records = [
        record(0, right(15), accuracy_low=0.55, accuracy_high=0.9),
        record(20, right(5), accuracy_low=0.05, accuracy_high=0.45),
    ]
    with RunDir.create(tmp_path / "run", job()) as run:
        for one in records:
            run.log(one)
    history = read_history(tmp_path / "run")
    (alarm,) = watch(history).alarms
    assert alarm.name == "forgetting"
    assert "gsm8k falls from 75.0% after step 0" in alarm.text
    (section,) = charts(history)
    (chart,) = section["charts"]
    assert (section["title"], chart["title"], chart["last"]) == ("Benchmarks", "gsm8k", "25%")
    (trace,) = chart["traces"]
    assert (trace["x"], trace["y"]) == ([0, 20], [0.75, 0.25])
    assert (trace["low"], trace["high"]) == ([0.55, 0.05], [0.9, 0.45])


def test_a_benchmark_is_a_line_of_the_console() -> None:
    told = record(20, right(5), accuracy_low=0.05, accuracy_high=0.45, format_failures=0.1)
    assert benchmark_text(told) == (
        "benchmark gsm8k (step 20): 25.0 % correct [5.0, 45.0] of 20, 10.0 % format failures"
    )
    nothing = benchmark_text(record(20, [None]))
    assert nothing == "benchmark gsm8k (step 20): no answer could be judged"


# settings


def job(**sections: Any) -> posttrain.GrpoConfig:
    return make_config({"model": "m", "env": "e"} | sections)


def test_tasks_are_a_number_or_a_table() -> None:
    assert job(evaluation={"tasks": 30}).evaluation.chosen.held_out == 30
    table = {"benchmarks": {"gsm8k": 100}, "max_tokens": 256}
    chosen = job(evaluation={"tasks": table}).evaluation.chosen
    assert (chosen.held_out, chosen.benchmarks, chosen.max_tokens) == (200, {"gsm8k": 100}, 256)
    with pytest.raises(UsageError, match=r"'evaluation.tasks.benchmarks.gsm8k': .*greater than"):
        job(evaluation={"tasks": {"benchmarks": {"gsm8k": 0}}})
    with pytest.raises(UsageError, match="evaluation.tasks has held_out, benchmarks, data, max_t"):
        job(evaluation={"tasks": {"bench": {}}})


def test_a_run_with_benchmarks_keeps_its_best_checkpoint_unless_told_otherwise() -> None:
    def kept(keep: Any, every: int = 25, **tasks: Any) -> KeepSettings:
        evaluation = {"every": every, "tasks": {"benchmarks": {"gsm8k": 10}} | tasks}
        settings = job(evaluation=evaluation, checkpoint={"keep": keep})
        return check_settings(settings).checkpoint.kept

    assert kept(3) == KeepSettings(last=3, best=1)
    assert kept({"last": 3}) == KeepSettings(last=3, best=0)
    assert kept(3, every=0) == KeepSettings(last=3, best=0)  # never measured at a checkpoint
    assert kept(3, held_out=0) == KeepSettings(last=3, best=0)  # best by what?
    by = {"best": 1, "by": "gsm8k"}
    assert kept(by, held_out=0) == KeepSettings(last=2, best=1, by="gsm8k")
    with pytest.raises(UsageError, match='has by = "gsm8k" and keeps no best'):
        kept({"by": "gsm8k"})


def test_bad_input_is_told_before_a_model_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)
    rows = write_rows(tmp_path)

    def start(benchmarks: dict[str, int], **checkpoint: Any) -> None:
        env = envs.from_tasks(
            [{"prompt": f"{i} ?", "answer": "2"} for i in range(9)], reward=variety
        )
        tasks = {"held_out": 1, "benchmarks": benchmarks}
        posttrain.grpo(
            model=tmp_path / "no-model", env=env, run_dir=tmp_path / "run", quiet=True,
            evaluation={"tasks": tasks, "every": 25}, checkpoint=checkpoint,
        )  # fmt: skip

    with pytest.raises(UsageError, match="no benchmark 'gsm9k'. Did you mean 'gsm8k'"):
        start({"gsm9k": 10})
    with pytest.raises(UsageError, match=r"math500 is not here; .*HuggingFaceH4/MATH-500"):
        start({"math500": 10})
    with pytest.raises(UsageError, match="nosuchset"):
        start({"reasoning_gym:nosuchset": 10})
    with pytest.raises(UsageError, match="has gsm8k twice"):
        start({f"gsm8k={rows}": 2, f"gsm8k={tmp_path}/./rows.jsonl": 2})
    with pytest.raises(UsageError, match="by = 'math', which is no benchmark .*those are: gsm8k"):
        start({f"gsm8k={rows}": 2}, keep={"best": 1, "by": "math"})
    assert not (tmp_path / "run").exists()


# the whole


N_ITEMS = 12


def write_rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    rows = [{"question": f"{i} + 1 ?", "answer": f"#### {i + 1}"} for i in range(N_ITEMS + 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_items_are_the_first_rows_and_the_same_each_time(tmp_path: Path) -> None:
    tasks = {"benchmarks": {f"gsm8k={write_rows(tmp_path)}": 3, "reasoning_gym:chain_sum": 2}}
    chosen = job(evaluation={"tasks": tasks}).evaluation.chosen
    first, second = light_suites(chosen), light_suites(chosen)
    assert [suite.name for suite in first] == ["gsm8k/boxed", "reasoning_gym:chain_sum/plain"]
    assert [task.answer for task in first[0].tasks] == ["#### 1", "#### 2", "#### 3"]
    for one, other in zip(first, second, strict=True):
        assert [t.messages for t in one.tasks] == [t.messages for t in other.tasks]
    assert len(first[1].tasks) == 2


def variety(completion: str) -> float:
    return len(set(completion)) / 20


def benchmarks_of(run: Path) -> list[tuple[str, int, str]]:
    records = RunDir.open(run).read_metrics()
    return [(r["benchmark"], r["step"], r["phase"]) for r in records if r["kind"] == "benchmark"]


def test_a_run_is_measured_on_benchmarks_and_a_resume_goes_on_with_their_curves(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = Path(shutil.copytree(checkpoint, tmp_path / "wide"))  # templates are long
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    rows = [{"prompt": f"what is {i} + 1 ?", "answer": str(i + 1)} for i in range(50)]
    env = envs.from_tasks(rows, reward=variety)
    named = {f"gsm8k={write_rows(tmp_path)}": N_ITEMS, "reasoning_gym:chain_sum": 3}
    run = posttrain.grpo(
        model=wide,
        env=env,
        run_dir=tmp_path / "run",
        steps=2,
        prompts_per_step=2,
        group_size=2,
        rollout={"engine": "embedded", "max_tokens": 4, "dtype": "float32"},
        learner={"ranks": 0, "dtype": "float32", "learning_rate": 1e-3, "threads": 1},
        evaluation={
            "tasks": {"held_out": 2, "benchmarks": named, "max_tokens": 6},
            "every": 1,
        },
        checkpoint={"every": 1, "keep": {"last": 2, "best": 1, "by": "gsm8k"}},
    )
    names = ("gsm8k", "reasoning_gym:chain_sum")
    once = [(0, "before"), (1, "during"), (2, "after")]
    assert benchmarks_of(run.path) == [(name, *at) for at in once for name in names]
    last = [r for r in RunDir.open(run.path).read_metrics() if r["kind"] == "benchmark"][-2]
    # a random model: nothing is right, and its answers end where max_tokens says
    assert (last["n_tasks"], last["accuracy"], last["per_task"]) == (12, 0.0, [0.0] * 12)
    assert sum(last["outcomes"].values()) == N_ITEMS
    assert 4 < last["mean_length"] <= 6
    assert undocumented(run.path) == set()

    # a past in which the benchmark was solved after step 1
    metrics = run.path / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    for one in records:
        if (one["kind"], one["step"], one.get("benchmark")) == ("benchmark", 1, "gsm8k"):
            one |= {"accuracy": 1.0, "per_task": [1.0] * N_ITEMS}
    metrics.write_text("".join(json.dumps(one) + "\n" for one in records))
    capsys.readouterr()
    posttrain.resume(run.path, env=env, steps=4)
    assert benchmarks_of(run.path) == [
        (name, *at) for at in [*once, (3, "during"), (4, "after")] for name in names
    ]
    told = [r for r in RunDir.open(run.path).read_metrics() if r.get("alarm") == "forgetting"]
    assert [r["step"] for r in told] == [3, 4]  # the end's, which the report finds again, once
    assert "gsm8k falls from 100.0% after step 1 to 0.0% after step 3: -100.0" in told[0]["text"]
    assert "on the same 12 items" in told[0]["text"]
    shown = capsys.readouterr().err
    assert f"! {told[0]['text']}" in shown
    assert "benchmark gsm8k (step 3): 0.0 % correct [0.0, 24.2] of 12, 100.0 % format" in shown
    left = [checkpoint_step(path) for path in list_checkpoints(run.path / "checkpoints")]
    assert left == [1, 3, 4]  # the newest two, and the best by gsm8k
    sections = {s["title"]: s["charts"] for s in charts(read_history(run.path))}
    curve = sections["Benchmarks"][0]
    assert (curve["title"], curve["traces"][0]["x"]) == ("gsm8k", [0, 1, 2, 3, 4])
    assert "Forgotten? gsm8k falls" in (run.path / "report.html").read_text()
