"""The run directory: exact round trips, no lost group after kill -9, one writer."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import EndReason
from posttrain.config import GrpoConfig
from posttrain.errors import RunError, UsageError
from posttrain.seeds import derive_seed
from posttrain.storage.jsonl import JsonLines, read_lines
from posttrain.storage.run_dir import RunDir
from posttrain.types import Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score

CONFIG = GrpoConfig(model="some/model", env="reasoning_gym:chain_sum", seed=7)


def rollout(sample: int, text: str = "4", value: float | None = 1.0) -> Rollout:
    outcome = Outcome.ERROR if value is None else Outcome.CORRECT
    completion = Completion(
        np.array([5, 6, 2]),
        np.array([-0.1, -2.5, -1e-7], dtype=np.float32),
        np.array([3, 3, 4]),
        FinishReason.STOP,
    )
    return Rollout(
        rollout_id=f"0-0-{sample}",
        task_id="t",
        sample_index=sample,
        turns=(Turn(np.array([1, 2, 3]), completion),),
        messages=({"role": "user", "content": "2+2?"}, {"role": "assistant", "content": text}),
        score=Score(value, outcome, {"exact": 1.0}, "why"),
        end_reason=EndReason.DONE,
        generation_s=0.25,
        reward_s=0.125,
    )


def group(step: int, prompt: int) -> Group:
    return Group(step, prompt, (rollout(0), rollout(1, value=None)))


def plain(groups: list[Group]) -> list[object]:
    """Everything in the groups as comparable values: arrays as (dtype, bytes)."""

    def array(a: np.ndarray) -> tuple[str, bytes]:
        return (str(a.dtype), a.tobytes())

    def turn(t: Turn) -> tuple[object, ...]:
        c = t.completion
        arrays = (t.prompt_ids, c.token_ids, c.logprobs, c.weight_versions)
        return (*map(array, arrays), c.finish_reason)

    def one(r: Rollout) -> tuple[object, ...]:
        s = r.score
        return (
            (r.rollout_id, r.task_id, r.sample_index, r.end_reason, r.generation_s, r.reward_s),
            [turn(t) for t in r.turns],
            [dict(m) for m in r.messages],
            (s.value, s.outcome, dict(s.parts), s.detail),
        )

    return [(g.step, g.prompt_index, [one(r) for r in g.rollouts]) for g in groups]


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
any_text = st.one_of(text, st.just("\ud800 lone"), st.just("\u2028\n\r\x00"))


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    n = draw(st.integers(0, 5))
    ids = st.lists(st.integers(0, 2**40), min_size=n, max_size=n)
    logprobs = st.lists(st.floats(width=32, allow_nan=False), min_size=n, max_size=n)
    return Completion(
        np.array(draw(ids), dtype=np.int64),
        np.array(draw(logprobs), dtype=np.float32),
        np.array(draw(ids), dtype=np.int64),
        draw(st.sampled_from(FinishReason)),
    )


@st.composite
def scores(draw: st.DrawFn) -> Score:
    outcome = draw(st.sampled_from(Outcome))
    judged = outcome not in (Outcome.TIMEOUT, Outcome.ERROR)
    parts = draw(st.dictionaries(any_text, finite, max_size=2))
    return Score(draw(finite) if judged else None, outcome, parts, draw(text))


@st.composite
def rollouts(draw: st.DrawFn, sample: int) -> Rollout:
    ids = st.lists(st.integers(0, 2**40), max_size=4).map(lambda x: np.array(x, dtype=np.int64))
    content = st.one_of(any_text, st.none(), st.lists(st.integers(), max_size=2), finite)
    message = st.fixed_dictionaries({"role": st.just("assistant"), "content": content})
    return Rollout(
        rollout_id=draw(text),
        task_id=draw(text),
        sample_index=sample,
        turns=tuple(draw(st.lists(st.builds(Turn, ids, completions()), max_size=3))),
        messages=tuple(draw(st.lists(message, max_size=3))),
        score=draw(scores()),
        end_reason=draw(st.sampled_from(EndReason)),
        generation_s=draw(finite),
        reward_s=draw(finite),
    )


@st.composite
def group_lists(draw: st.DrawFn) -> list[Group]:
    n = draw(st.integers(0, 3))
    return [
        Group(3, index, tuple(draw(rollouts(k)) for k in range(draw(st.integers(1, 3)))))
        for index in range(n)
    ]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=group_lists())
def test_groups_round_trip_bit_for_bit(groups: list[Group], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("run") / "r"
    with RunDir.create(path, CONFIG, {}) as run:
        for one in reversed(groups):
            run.append_group(one)
        partial = run.load_partial(3)
        assert plain([partial[index] for index in sorted(partial)]) == plain(groups)
        run.seal_step(3, groups)
        assert run.load_partial(3) == {}
        assert plain(run.load_step(3)) == plain(groups)
        assert sorted(p.name for p in (path / "rollouts").iterdir()) == ["step-000003.parquet"]


def test_a_lone_surrogate_in_a_detail_does_not_stop_the_run(tmp_path: Path) -> None:
    one = rollout(0)
    score = Score(None, Outcome.ERROR, {}, "File '\udcff.py'")
    odd = Rollout(**{**{f: getattr(one, f) for f in Rollout.__slots__}, "score": score})
    with RunDir.create(tmp_path / "r", CONFIG) as run:
        run.seal_step(0, [Group(0, 0, (odd,))])
        assert run.load_step(0)[0].rollouts[0].score.detail == "File '\\udcff.py'"


def test_steps_may_alternate_and_are_listed(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run:
        for step, prompt in [(0, 0), (1, 0), (0, 1), (1, 1)]:
            run.append_group(group(step, prompt))
        assert run.rollouts.partial_steps() == [0, 1]
        assert sorted(run.load_partial(0)) == sorted(run.load_partial(1)) == [0, 1]
        run.seal_step(0, [group(0, 0), group(0, 1)])
        assert (run.rollouts.sealed_steps(), run.rollouts.partial_steps()) == ([0], [1])
        assert run.load_step(1) is None


def test_a_step_is_sealed_in_a_thread_while_the_next_is_appended_to(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run, ThreadPoolExecutor(1) as pool:
        sealing = []
        for step in range(30):
            groups = [group(step, prompt) for prompt in range(4)]
            for one in groups:
                run.append_group(one)
            sealing.append(pool.submit(run.seal_step, step, groups))
        for future in sealing:
            future.result(timeout=30)
        assert run.rollouts.sealed_steps() == list(range(30))
        assert run.rollouts.partial_steps() == []


def test_a_torn_last_line_is_counted_and_cut_before_the_next_append(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run:
        run.append_group(group(0, 0))
        run.append_group(group(0, 1))
    partial = tmp_path / "r/rollouts/step-000000.partial.jsonl"
    partial.write_bytes(partial.read_bytes()[:-40])
    with RunDir.resume(tmp_path / "r") as run:
        assert sorted(run.load_partial(0)) == [0]
        assert run.rollouts.torn_lines == 1
        run.append_group(group(0, 2))
        assert sorted(run.load_partial(0)) == [0, 2]
        assert run.rollouts.torn_lines == 1


def test_a_crash_between_rename_and_removal_leaves_each_group_once(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run:
        run.append_group(group(0, 0))
        partial = tmp_path / "r/rollouts/step-000000.partial.jsonl"
        kept = partial.read_bytes()
        run.seal_step(0, [group(0, 0)])
    partial.write_bytes(kept)
    (tmp_path / "r/rollouts/step-000001.parquet.tmp").write_bytes(b"half")
    with RunDir.resume(tmp_path / "r") as run:
        assert run.load_partial(0) == {}
        assert len(run.load_step(0)) == 1
        assert os.listdir(tmp_path / "r/rollouts") == ["step-000000.parquet"]


def test_sealing_a_group_of_another_step_is_refused(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run, pytest.raises(ValueError, match=r"\[1\]"):
        run.seal_step(0, [group(0, 0), group(1, 0)])


def test_a_message_that_is_not_json_names_the_culprit(tmp_path: Path) -> None:
    one = rollout(0)
    messages = ({"role": "user", "content": {1, 2}},)
    odd = Rollout(**{**{f: getattr(one, f) for f in Rollout.__slots__}, "messages": messages})
    run = RunDir.create(tmp_path / "r", CONFIG)
    with run, pytest.raises(RunError, match=r"prompt 4.*set"):
        run.append_group(Group(0, 4, (odd,)))


WRITER = """
import sys
sys.path[:0] = {paths!r}
from test_run_dir import CONFIG, group
from posttrain.storage.run_dir import RunDir
run = RunDir.create(sys.argv[1], CONFIG)
for step in range(10**6):
    groups = [group(step, prompt) for prompt in range(4)]
    for g in groups:
        run.append_group(g)
        print(step, g.prompt_index, flush=True)
    run.seal_step(step, groups)
    run.log({{"kind": "step", "step": step}})
"""


@pytest.mark.parametrize("wait_s", [0.011, 0.05, 0.093, 0.2])
def test_kill_9_loses_no_finished_group(tmp_path: Path, wait_s: float) -> None:
    here = Path(__file__).resolve().parent
    code = WRITER.format(paths=[str(here), str(here.parents[2])])
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        first = writer.stdout.readline()
        time.sleep(wait_s)
        os.kill(writer.pid, signal.SIGKILL)
        lines = [first, *writer.stdout]
    done = {tuple(map(int, line.split())) for line in lines if line.endswith("\n")}
    with RunDir.resume(tmp_path / "r") as run:  # the lock of the dead process is gone
        files = run.rollouts
        found = [(s, g.prompt_index) for s in files.sealed_steps() for g in run.load_step(s)]
        found += [(s, prompt) for s in files.partial_steps() for prompt in run.load_partial(s)]
        assert len(found) == len(set(found))
        assert done <= set(found)
        assert len(found) - len(done) <= 1  # written, and killed before it could say so
        steps = [record["step"] for record in run.read_metrics()]
        assert steps == list(range(len(steps)))


def test_config_json_tells_what_the_result_depends_on(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "r", CONFIG, {"name": "chain_sum", "held_out": 500}).close()
    manifest = RunDir.open(tmp_path / "r").manifest()
    assert manifest["config"]["env"] == "reasoning_gym:chain_sum"
    assert manifest["environment"] == {"name": "chain_sum", "held_out": 500}
    assert (manifest["seed"], manifest["format"]) == (7, 1)
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["argv"] == sys.argv
    assert manifest["python"].startswith("3.")
    assert os.uname().nodename not in json.dumps(manifest["platform"]).split('"')
    assert RunDir.open(tmp_path / "r").load_config() == CONFIG


def test_the_tokenizer_of_a_local_model_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").write_text('{"version": "1.0"}')
    config = GrpoConfig(model=str(tmp_path / "model"), env="x")
    RunDir.create(tmp_path / "r", config).close()
    assert (tmp_path / "r/tokenizer.json").read_text() == '{"version": "1.0"}'


def test_create_refuses_a_folder_in_use_and_writes_nothing(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", CONFIG).close()
    with pytest.raises(UsageError, match=r"already holds a run.*posttrain resume"):
        RunDir.create(tmp_path / "run", CONFIG)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"not empty .notes.txt"):
        RunDir.create(tmp_path / "mine", CONFIG)
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]
    with pytest.raises(UsageError, match="is a file"):
        RunDir.create(tmp_path / "mine/notes.txt", CONFIG)
    (tmp_path / "empty").mkdir()
    RunDir.create(tmp_path / "empty", CONFIG).close()


def test_open_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        RunDir.open(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no config\.json"):
        RunDir.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="can't be read"):
        RunDir.open(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="format 99"):
        RunDir.open(tmp_path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run:
        with pytest.raises(UsageError, match=f"another process .pid {os.getpid()}"):
            RunDir.resume(tmp_path / "r")
        reader = RunDir.open(tmp_path / "r")
        with pytest.raises(RuntimeError, match="opened for reading"):
            reader.log({"kind": "event", "step": 0})
        alive, child_alive = os.pipe()
        child = os.fork()
        if child == 0:  # a forked worker that outlives us must not keep the lock
            os.write(child_alive, b"x")
            time.sleep(20)
            os._exit(0)
        os.read(alive, 1)
        run.close()
        RunDir.resume(tmp_path / "r").close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_metrics_read_back_with_non_finite_numbers_as_null(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run:
        numbers = {"loss": math.nan, "kl": np.float32(0.5), "n": np.int64(3)}
        run.log({"kind": "step", "step": 0, **numbers})
        run.log({"kind": "event", "step": 0, "text": "server restarted", "time": 1.5})
        with pytest.raises(ValueError, match=r"needs .'step'"):
            run.log({"kind": "event"})
    with open(tmp_path / "r/metrics.jsonl", "a") as file:
        file.write('{"kind": "ste')
    first, second = RunDir.open(tmp_path / "r").read_metrics()
    assert (first["loss"], first["kl"], first["n"]) == (None, 0.5, 3)
    assert abs(first["time"] - time.time()) < 60
    assert second == {"time": 1.5, "kind": "event", "step": 0, "text": "server restarted"}


def test_truncate_drops_what_a_resume_writes_again(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "r", CONFIG) as run:
        run.log({"kind": "eval", "step": 0, "phase": "before"})
        for step in range(4):
            run.log({"kind": "step", "step": step})
            run.log({"kind": "sync", "step": step, "version": step + 1})
            run.log({"kind": "event", "step": step, "text": "x"})
            run.log({"kind": "eval", "step": step + 1, "phase": "during"})
        run.truncate_from(2)
        run.log({"kind": "step", "step": 2})
    kept = [(r["kind"], r["step"]) for r in RunDir.open(tmp_path / "r").read_metrics()]
    assert kept == [
        ("eval", 0),
        *[("step", 0), ("sync", 0), ("event", 0), ("eval", 1)],
        *[("step", 1), ("sync", 1), ("event", 1), ("eval", 2)],
        *[("event", 2), ("event", 3), ("step", 2)],
    ]


def test_a_torn_metrics_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a":1}\n{"b":' + b"x" * 200_000)
    lines = JsonLines(path)
    lines.append({"c": "\ud83d"})
    lines.close()
    assert read_lines(path) == ([{"a": 1}, {"c": "\ud83d"}], 0)


def test_seeds_differ_everywhere_and_never_change() -> None:
    assert derive_seed(0, 0, 0, 0) == 4738610821230488419
    places = [(a, b, c, d) for a in range(3) for b in range(20) for c in range(8) for d in range(8)]
    seeds = {derive_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 12, 3, 4) != derive_seed(11, 2, 3, 4)
