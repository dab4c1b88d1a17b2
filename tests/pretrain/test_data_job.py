"""A data job from files to shards: counts, rejects, resumption, bad input, a full disk."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dill
import pytest
from datatrove.data import Document

from pretrain import cli
from pretrain.data import job
from pretrain.data.chain import Chain, new_shard
from pretrain.data.counts import merge
from pretrain.data.executors import make_executor
from pretrain.data.funnel import funnel_page, read_counts
from pretrain.data.job import prepare_data
from pretrain.data.readers import Reader, list_files
from pretrain.data.registry import make_step
from pretrain.data.settings import read_config
from pretrain.errors import RunError, UsageError

EN = "The library was opened in 1912, and most of the books have been there since that time."
STEPS = ["url", "extract", {"name": "gopher_quality", "min_words": 10}]


def make_input(folder: Path, files: int = 3) -> Path:
    folder.mkdir()
    for i in range(files):
        rows = [
            {"text": f"{EN} File {i}.", "id": f"good-{i}"},
            {"text": "Short.", "id": f"bad-{i}"},
        ]
        (folder / f"{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in folder.rglob("*.jsonl.gz")
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("job")
    source, out = make_input(root / "in"), root / "out"
    prepare_data(input=source, output=out, steps=STEPS, rejects=True, workers=1)
    return out


def test_kept_dropped_and_counted(done: Path) -> None:
    assert [row["id"] for row in rows_of(done / "documents")] == ["good-0", "good-1", "good-2"]
    rejects = rows_of(done / "00_steps.rejects")
    assert [(r["id"], r["metadata"]["reason"]) for r in rejects] == [
        (f"bad-{i}", "gopher_short_doc") for i in range(3)
    ]
    counts = json.loads((done / "00_steps" / "counts.json").read_text())
    last = counts["steps"][-1]
    assert (counts["in"], counts["kept"]) == (6, 3)
    assert (last["stage"], last["dropped"]) == ("gopher_quality", {"gopher_short_doc": 3})
    assert last["examples"] == {"gopher_short_doc": ["Short."] * 3}
    assert (
        counts["characters_in"] == sum(len(row["text"]) for row in rows_of(done / "00_steps")) + 18
    )
    assert not list(done.rglob(".*.tmp"))


def test_the_funnel_says_where_documents_went(done: Path) -> None:
    page = funnel_page(read_counts(done))
    assert page == (done / "funnel.html").read_text()
    assert "6 documents read, 3 kept (50.0 %)" in page
    assert "gopher_short_doc: 3" in page and "<blockquote>Short.</blockquote>" in page
    assert "http" not in page  # nothing to load


def test_words_are_counted_by_step_rule_and_language_but_not_in_markup(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.html").write_text(f"<html><body><p>{EN}</p></body></html>")
    (source / "b.html").write_text(f"<html><body><p>{EN} And more of it.</p></body></html>")
    (source / "c.html").write_text("<html><body><p>Three short words</p></body></html>")
    result = prepare_data(
        input=source, output=tmp_path / "out", steps=["extract", "language", STEPS[2]], workers=1
    )
    extract, language, quality = result.counts[0]["steps"]
    assert result.counts[0]["words_kept"] == quality["words_kept"] == 17 + 21
    assert extract["words_kept"] == 17 + 21 + 3
    (dropped,) = (step for step in (language, quality) if step["dropped"])
    assert list(dropped["dropped_words"].values()) == [3]
    assert quality["by_language"]["en"]["words_kept"] == 38
    raw = prepare_data(input=source, output=tmp_path / "raw", steps=["url"], workers=1).counts[0]
    assert raw["steps"][0]["words_kept"] == 0


def test_the_funnel_says_words_and_at_the_end_tokens(done: Path) -> None:
    steps = read_counts(done)[0]
    english = {"in": 3, "kept": 3, "tokens_kept": 61}
    shards = {"stage": "shards", **english, "dropped": {}, "by_language": {"en": english}}
    page = funnel_page([steps, shards])
    assert "3 kept (50.0 %), 0 characters, 61 tokens" in page
    assert "<th>words kept</th><th>tokens kept</th>" in page
    assert "<td>57</td><td></td></tr>" in page and "<td></td><td>61</td></tr>" in page
    assert "<small>100.0 %<br>61 tokens</small>" in page
    assert "gopher_short_doc: 3 <small>50.0 % of what came in, 3 words</small>" in page


def test_the_page_escapes_what_was_dropped() -> None:
    counts = {"stage": "x", "in": 2, "kept": 1, "dropped": {"why": 1}}
    page = funnel_page([{**counts, "examples": {"why": ["<script>alert(1)</script>"]}}])
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_the_same_call_does_nothing_twice(done: Path) -> None:
    before = snapshot(done)
    settings = json.loads((done / "job.json").read_text())
    settings.pop("files")
    assert prepare_data(**settings).counts[0]["kept"] == 3
    assert snapshot(done) == before
    settings["steps"] = ["extract"]
    with pytest.raises(UsageError, match="holds another job: steps was"):
        prepare_data(**settings)


def test_an_interrupted_job_goes_on_with_the_same_result(tmp_path: Path, done: Path) -> None:
    source, out = make_input(tmp_path / "in"), tmp_path / "out"
    settings: dict[str, Any] = dict(input=source, output=out, rejects=True, workers=1)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        prepare_data(**settings, steps=[*STEPS, f"{__name__}:InterruptOnce"])
    kept = snapshot(out)
    assert sorted(kept) == ["00_steps.rejects/00000.jsonl.gz", "00_steps/00000.jsonl.gz"]
    assert not list(out.rglob(".*.tmp"))
    prepare_data(**settings, steps=[*STEPS, f"{__name__}:InterruptOnce"])
    assert kept.items() <= snapshot(out).items()  # the finished task was not run again
    for folder in ("00_steps", "00_steps.rejects"):
        assert [r["id"] for r in rows_of(out / folder)] == [r["id"] for r in rows_of(done / folder)]


class InterruptOnce:
    """Interrupts at the second file, the first time."""

    name = "interrupt"
    armed = True

    def check(self, document: Any) -> None:
        if document.id == "good-1" and InterruptOnce.armed:
            InterruptOnce.armed = False
            signal.raise_signal(signal.SIGINT)


def test_one_worker_forks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be too large to be forked."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("it forked"))
    prepare_data(input=make_input(tmp_path / "in"), output=tmp_path / "out", workers=1)


def test_two_processes_count_as_one(tmp_path: Path, done: Path) -> None:
    out = tmp_path / "out"
    prepare_data(input=make_input(tmp_path / "in"), output=out, steps=STEPS, workers=2)
    assert rows_of(out / "documents") == rows_of(done / "documents")


def copy_stage(source: Path, target: Path, settings: dict[str, Any]) -> None:
    """Keep the first document of every shard."""
    target.mkdir()
    for path in source.glob("*.jsonl.gz"):
        (target / path.name).write_bytes(path.read_bytes())
    counts = json.loads((source / "counts.json").read_text())
    counts = {k: v for k, v in counts.items() if k != "steps"} | {"stage": "copy", "told": settings}
    (target / "counts.json").write_text(json.dumps(counts))


def test_stages_follow_the_steps(tmp_path: Path) -> None:
    stage = {"name": f"{__name__}:copy_stage", "threshold": 0.8}
    source = make_input(tmp_path / "in", 1)
    out = tmp_path / "out"
    result = prepare_data(input=source, output=out, steps=STEPS, stages=[stage], workers=1)
    assert result.documents == out / "01_copy_stage"
    assert (out / "documents").resolve() == out / "01_copy_stage"
    assert result.counts[1]["told"] == {"threshold": 0.8}
    assert len(rows_of(out / "documents")) == 1


def test_registered_stages_and_steps_run_by_name(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    twins = [{"text": f"{EN} Write to maria.lopez@mail-example.com", "id": str(i)} for i in (0, 1)]
    (source / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twins))
    stages = [{"name": "exact_duplicates", "rejects": True}]
    result = prepare_data(input=source, output=out, steps=["pii"], stages=stages, workers=1)
    assert result.counts[1]["dropped"] == {"duplicate": 1}
    (kept,) = rows_of(out / "documents")
    assert "maria" not in kept["text"] and kept["text"].startswith(EN)
    assert [row["id"] for row in rows_of(out / "01_exact_duplicates.rejects")] == ["1"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"input": "nowhere"}, "input nowhere is not there"),
        ({"input": "."}, "the corpus is empty"),
        ({"steps": ["gofer_quality"]}, 'there is no step "gofer_quality"; did you mean "gopher_'),
        ({"steps": [{"name": "c4", "min_sentence": 3}]}, 'did you mean "min_sentences"?'),
        ({"steps": "c4"}, "steps: "),
        ({"stages": ["minhsh"]}, 'there is no stage "minhsh"'),
        ({"steps": ["nowhere.at_all:Step"]}, "can't import nowhere.at_all:Step"),
        ({"executor": "slurp"}, 'there is no executor "slurp"; did you mean "slurm"?'),
        ({"executor": "slurm"}, "executor slurm needs time, partition"),
        ({"executor": {"name": "slurm", "partition": "p", "time": "1"}}, "no command sbatch"),
        ({"executor": "ray"}, "the package ray is not installed"),
        ({"executor": {"name": "local", "worker": 2}}, 'did you mean "workers"?'),
        ({"format": "wark"}, 'format "wark" is not one of'),
        ({"imput": "x"}, 'there is no setting "imput"; did you mean "input"?'),
        ({"tasks": -1}, "tasks: "),
        ({"output": ""}, "output is missing"),
    ],
)
def test_bad_input_is_said_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = make_input(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    if settings.get("input") == ".":
        settings = {"input": "empty"}
    with pytest.raises(UsageError) as error:
        prepare_data(**{"input": source, "output": tmp_path / "out", **settings})
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_without_a_document_are_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(RunError, match="no document was read"):
        prepare_data(input=tmp_path / "a.jsonl", output=tmp_path / "out", steps=STEPS, workers=1)


def test_the_deadline_stops_and_keeps_what_is_done(tmp_path: Path) -> None:
    source = make_input(tmp_path / "in")
    with pytest.raises(RunError, match="deadline"):
        prepare_data(input=source, output=tmp_path / "out", steps=STEPS, workers=1, deadline_s=1e-6)
    assert prepare_data(input=source, output=tmp_path / "out", steps=STEPS, workers=1).counts


FULL_DISK = """
import random, resource, sys
from pretrain.data.job import prepare_data
from pretrain.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    prepare_data(input=sys.argv[1], output=sys.argv[2], steps=["url"], workers=1)
except RunError as error:
    sys.exit(f"RunError: {error}")
"""


def test_a_full_disk_leaves_nothing_corrupt(tmp_path: Path) -> None:
    # A file that may not grow beyond 100 kB stands for the disk: the same OSError on write.
    source, out = make_input(tmp_path / "in", 1), tmp_path / "out"
    noise = os.urandom(600_000).hex()
    (source / "1.jsonl").write_text(json.dumps({"text": noise}) + "\n")
    command = [sys.executable, "-c", FULL_DISK, str(source), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (
        "RunError: could not write to" in ended.stderr and "give the same command" in ended.stderr
    )
    assert [path.name for path in sorted((out / "00_steps").glob("*.gz"))] == ["00000.jsonl.gz"]
    assert not list(out.rglob(".*.tmp"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    assert prepare_data(input=source, output=out, steps=["url"], workers=1).counts[0]["kept"] == 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "job.toml"
    config.write_text(f'steps = ["url"]\nworkers = 1\ninput = "{make_input(tmp_path / "in", 1)}"\n')
    assert cli.main(["data", str(config), f"output={tmp_path / 'out'}"]) == 0
    assert "2 of 2 documents in" in capsys.readouterr().out
    assert cli.main(["data", str(config), f"output={tmp_path / 'out'}", 'steps=["c5"]']) == 2
    assert 'did you mean "c4"?' in capsys.readouterr().err
    assert cli.main(["data", str(tmp_path / "none.toml")]) == 2
    assert read_config("input=x", ["tasks=3"]) == {"input": "x", "tasks": 3}


SLURM = {"name": "slurm", "partition": "cpu", "time": "1:00:00"}


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Programs by name, as shell scripts before all others."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    if str(folder) not in os.environ["PATH"]:
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_submitted_job_is_not_submitted_again_while_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against stand-ins for sbatch and squeue; the tasks of the array are run here."""
    log, bin_ = tmp_path / "sbatch.log", tmp_path / "bin"
    submit = f"echo x >> {log}; echo Submitted batch job 7$(wc -l < {log})"
    commands(bin_, monkeypatch, sbatch=submit, squeue='echo "$@" | grep -o "7.*"')
    commands(bin_, monkeypatch, scontrol="echo localhost")
    source, out = make_input(tmp_path / "in"), tmp_path / "out"
    settings: dict[str, Any] = dict(input=source, output=out, steps=STEPS)
    assert prepare_data(**settings, executor=SLURM).submitted
    assert log.read_text() == "x\n"
    for executor in (SLURM, "local"):  # whatever is to run them
        with pytest.raises(UsageError, match="Slurm job 71 is at work .* 3 of 3 tasks"):
            prepare_data(**settings, executor=executor)
    commands(bin_, monkeypatch, squeue="echo no controller >&2; exit 1")
    with pytest.raises(RunError, match="can't tell whether job 71 still runs: no controller"):
        prepare_data(**settings, executor=SLURM)
    commands(bin_, monkeypatch, squeue="echo slurm_load_jobs error: Invalid job id >&2; exit 1")
    assert prepare_data(**settings, executor=SLURM).submitted
    assert log.read_text() == "x\n" * 2
    assert (out / "logs" / "slurm_jobs.txt").read_text() == "72\n"
    sent = dill.loads((out / "logs" / "executor.pik").read_bytes())
    with monkeypatch.context() as inside:
        inside.setenv("SLURM_NODELIST", "localhost")
        for rank in range(3):
            inside.setenv("SLURM_ARRAY_TASK_ID", str(rank))
            sent.run()
    (out / "00_steps" / ".00000.jsonl.gz.elsewhere-1.tmp").write_text("of a task that was killed")
    assert prepare_data(**settings, executor=SLURM).counts[0]["kept"] == 3
    assert log.read_text() == "x\n" * 2 and not list(out.rglob(".*.tmp"))


def test_a_job_that_sbatch_refuses_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path / "bin", monkeypatch, sbatch="exit 3")
    with pytest.raises(RunError, match="sbatch took no job .exit status 3"):
        prepare_data(input=make_input(tmp_path / "in"), output=tmp_path / "out", executor=SLURM)


def test_one_shard_of_two_processes_is_that_of_one_of_them(tmp_path: Path) -> None:
    """Each writes under a name of its own."""
    ready, go = tmp_path / "ready", tmp_path / "go"
    script = (
        "import sys, time; from pathlib import Path; from pretrain.data.chain import new_shard\n"
        "folder, ready, go = map(Path, sys.argv[1:])\n"
        "with new_shard(folder, 0) as file:\n"
        "    file.write(b'theirs\\n'); ready.touch()\n"
        "    while not go.exists(): time.sleep(0.01)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(ready), str(go)]
    with subprocess.Popen(command) as other:
        deadline = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with new_shard(tmp_path / "out", 0) as file:
            file.write(b"ours\n")
        shard = tmp_path / "out" / "00000.jsonl.gz"
        assert gzip.decompress(shard.read_bytes()) == b"ours\n"
        go.touch()
        assert other.wait(timeout=60) == 0
    assert gzip.decompress(shard.read_bytes()) == b"theirs\n"


def test_tasks_run_as_datatroves_slurm_jobs_do(tmp_path: Path, monkeypatch: Any) -> None:
    """No cluster here: the pickled executor that a job of the array would load, run as it would."""
    source, out = make_input(tmp_path / "in"), tmp_path / "out" / job.STEPS_FOLDER
    steps = [make_step(entry) for entry in STEPS]
    chain = Chain(Reader(list_files(source), source), steps, out)
    commands(tmp_path / "bin", monkeypatch, sbatch="exit 1", scontrol="echo localhost")
    executor = make_executor(SLURM, [chain], tasks=3, workers=3, logs=tmp_path / "logs")
    with executor.logging_dir.open("ranks_to_run.json", "w") as file:
        json.dump(executor.get_incomplete_ranks(), file)
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    sent = dill.loads(dill.dumps(executor))
    for rank in range(3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(rank))
        sent.run()
    assert not executor.get_incomplete_ranks()
    assert [row["id"] for row in rows_of(out)] == ["good-0", "good-1", "good-2"]


def test_counts_add_up() -> None:
    one = {"stage": "s", "in": 2, "dropped": {"a": 1}, "examples": {"a": ["x", "y"]}}
    two = {"stage": "s", "in": 3, "dropped": {"a": 1, "b": 2}, "examples": {"a": ["z", "w"]}}
    assert merge([one, two]) == {
        "stage": "s",
        "in": 5,
        "dropped": {"a": 2, "b": 2},
        "examples": {"a": ["x", "y", "z"]},
    }


def test_a_datatrove_filter_is_a_step() -> None:
    step = make_step({"name": "datatrove.pipeline.filters:RegexFilter", "regex_exp": "secret"})
    assert step.name == "RegexFilter"
    assert step.check(Document(text="a secret", id="")) == "dropped"
    assert step.check(Document(text="public", id="")) is None
