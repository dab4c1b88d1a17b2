"""The report: exact numbers, any state of a run, harmless text, and the page in a real browser."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from envs import EndReason
from posttrain.config import GrpoConfig
from posttrain.errors import UsageError
from posttrain.report import write_report
from posttrain.report.history import evenly, time_spent
from posttrain.report.rollouts import HEAD_TOKENS, TAIL_TOKENS
from posttrain.report.tokens import TokenTexts
from posttrain.storage.run_dir import RunDir
from posttrain.types import Completion, FinishReason, Group, Rollout, Turn
from rewards import Outcome, Score

EVIL = (
    "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer.json, so that one emoji is several tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the answer is 12 and the other answer is 21"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def settings(model: Path, **more: Any) -> GrpoConfig:
    grpo = {"steps": 4, "prompts_per_step": 2, "group_size": 2}
    return GrpoConfig.model_validate({"model": str(model), "env": "sums", "grpo": grpo} | more)


def rollout(model: Path, sample: int, score: Score, text: str = "the answer is 12 🙂") -> Rollout:
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
    n = len(ids)
    completion = Completion(
        np.array(ids),
        np.linspace(-2, 0, n, dtype=np.float32),
        np.array([0] * (n - 1) + [1]),
        FinishReason.STOP,
    )
    messages = ({"role": "user", "content": "6 + 6?"}, {"role": "assistant", "content": text})
    turn = Turn(np.array([1, 2]), completion)
    return Rollout(
        f"0-0-{sample}", "t-1", sample, (turn,), messages, score, EndReason.DONE, 0.5, 0.25
    )


def right(value: float = 1.0) -> Score:
    return Score(value, Outcome.CORRECT, {"exact": value})


def group(model: Path, step: int, prompt: int, *scores: Score, text: str = "the answer") -> Group:
    members = tuple(rollout(model, i, score, text) for i, score in enumerate(scores))
    return Group(step, prompt, members)


def step_record(step: int, **more: Any) -> dict[str, Any]:
    record = {
        **{"kind": "step", "step": step, "time": 1000.0 + step, "reward_mean": 0.5 + step / 10},
        **{"outcomes": {"correct": 3, "wrong": 1}, "groups": 2, "groups_without_signal": 1},
        **{"entropy": 1.0 - step / 10, "kl": None, "logprob_gap": 0.002, "grad_norm": 0.5},
        **{"completion_tokens": 100, "time_total_s": 2.0, "time_train_s": 0.5},
        **{"time_wait_s": 1.0, "time_generation_s": 3.0, "time_reward_s": 1.0},
        **{"lag_tokens": {"0": 60, "1": 30, "5": 4, "7": 6}, "engine_idle_share": 0.25},
        **{"learner_idle_share": 0.5, "ratio_mean": 1.01, "ratio_max": 3.0},
        **{"effective_sample_share": 0.9},
    }
    return record | more


def eval_record(step: int, phase: str, accuracy: float) -> dict[str, Any]:
    interval = {"accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05}
    return {
        **{"kind": "eval", "step": step, "phase": phase, "n_tasks": 500, "time": 999.0 + 2 * step},
        **{"accuracy": accuracy, **interval, "mean_reward": accuracy},
    }


def finished(path: Path, model: Path) -> Path:
    with RunDir.create(path, settings(model), {"name": "sums"}) as run:
        run.log(eval_record(0, "before", 0.40))
        for step in range(4):
            scores = (right(), Score(0.0, Outcome.WRONG, {"exact": 0.0}))
            run.seal_step(step, [group(model, step, 0, *scores, text="the answer is 12 🙂")])
            sync = {"kind": "sync", "step": step + 1, "version": step + 1, "seconds": 0.125}
            run.log(sync | {"probe_gap": 0.001 * step, "restarts": int(step == 2)})
            run.log(step_record(step))
        run.log({"kind": "skip", "step": 1, "reason": "the loss is not finite"})
        run.log(eval_record(4, "after", 0.65))
    return path


def packed(page: str, name: str = "data") -> Any:
    found = re.search(f'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def chart(page: str, title: str) -> dict[str, Any]:
    every = [one for section in packed(page)["sections"] for one in section["charts"]]
    return next(one for one in every if one["title"] == title)


def test_a_finished_run_shows_its_numbers(tmp_path: Path, model: Path) -> None:
    path = write_report(finished(tmp_path / "r", model))
    page = path.read_text()
    assert path == tmp_path / "r/report.html"
    assert '<span class="state good">finished</span>' in page
    for text in (
        "40.0% → 65.0%",
        "+25.0 points; [35.0, 45.0] → [60.0, 70.0] on 500 tasks",
        "4 of 4",
        "median 0.12 s, worst gap 0.0030, 1 restart",
        "400 completion tokens, 2.00 s per step",
        "<td>1</td><td>skipped</td><td>the loss is not finite</td>",
        "generation 38%",
        '<tr class="set"><td>grpo.steps</td><td>4</td></tr>',
        "<tr><td>grpo.max_lag</td><td>0</td></tr>",
    ):
        assert text in page, text
    reward = chart(page, "Reward")["traces"][0]
    assert (reward["x"], reward["y"]) == ([0, 1, 2, 3], [0.5, 0.6, 0.7, 0.8])
    held_out = chart(page, "Accuracy")["traces"][-1]
    assert (held_out["x"], held_out["y"], held_out["low"]) == ([0, 4], [0.4, 0.65], [0.35, 0.6])
    outcomes = chart(page, "Outcomes")["traces"]
    assert {t["name"]: t["y"][0] for t in outcomes} == {"correct": 0.75, "wrong": 0.25}
    assert chart(page, "Wasted samples")["traces"][0]["y"] == [0.5] * 4
    assert packed(page)["marks"] == [{"x": 1, "text": "skipped"}, {"x": 3, "text": "restart"}]
    titles = [c["title"] for s in packed(page)["sections"] for c in s["charts"]]
    assert "KL divergence" not in titles  # it was never a number


def test_staleness_weights_and_idleness_are_drawn(tmp_path: Path, model: Path) -> None:
    with RunDir.create(tmp_path / "r", settings(model)) as run:
        run.log(step_record(0))
    page = write_report(tmp_path / "r").read_text()
    shares = {trace["name"]: trace["y"] for trace in chart(page, "Staleness")["traces"]}
    assert shares == {"lag 0": [0.6], "lag 1": [0.3], "lag 5 or more": [0.1]}
    idle = {trace["name"]: trace["y"] for trace in chart(page, "Idle")["traces"]}
    assert idle == {"engine": [0.25], "learner": [0.5]}
    ratio = {trace["name"]: trace["y"] for trace in chart(page, "Importance weights")["traces"]}
    assert ratio == {"mean": [1.01], "largest": [3.0]}
    assert chart(page, "Effective samples")["traces"][0]["y"] == [0.9]
    corrected = {"correction_weight": 0.98, "correction_weight_max": 2.0, "correction_masked": 0.1}
    with RunDir.create(tmp_path / "c", settings(model)) as run:
        run.log(step_record(0, **corrected))
    page = write_report(tmp_path / "c").read_text()
    weights = {trace["name"]: trace["y"] for trace in chart(page, "Importance weights")["traces"]}
    assert weights == {"mean": [0.98], "largest": [2.0]}
    masked = {trace["name"]: trace["y"] for trace in chart(page, "Effective samples")["traces"]}
    assert masked == {"masked": [0.1], "effective": [0.9]}


@pytest.mark.parametrize(
    ("after", "tone"), [(0.55, "good"), (0.49, ""), (0.25, "bad")], ids=["up", "same", "down"]
)
def test_accuracy_is_coloured_only_beyond_its_intervals(
    tmp_path: Path, model: Path, after: float, tone: str
) -> None:
    with RunDir.create(tmp_path / "r", settings(model)) as run:
        run.log(eval_record(0, "before", 0.40))
        run.log(eval_record(4, "after", after))
    page = write_report(tmp_path / "r").read_text()
    assert f'<div class="card {tone}"><h3>Held-out accuracy</h3>' in page


def test_the_time_of_a_step_adds_up() -> None:
    spent = time_spent(step_record(0))
    assert spent == {
        **{"generation": 0.75, "reward": 0.25, "training": 0.5, "weight sync": 0.0},
        **{"evaluation": 0.0, "checkpoint": 0.0, "other": 0.5},
    }
    assert sum(time_spent({"time_generation_s": 1.0, "time_total_s": 3.0}).values()) == 3.0


def test_rollouts_carry_their_tokens(tmp_path: Path, model: Path) -> None:
    page = write_report(finished(tmp_path / "r", model)).read_text()
    rollouts = packed(page)["rollouts"]
    assert len(rollouts) == 8
    first = rollouts[0]
    assert (first["value"], first["outcome"], first["group"]) == (1.0, "correct", [1.0, 0.0])
    turn = first["messages"][1]["turn"]
    n = len(turn["ids"])
    assert "".join(turn["texts"]) == "the answer is 12 🙂"
    assert turn["versions"] == [[0, n - 1], [1, 1]]
    assert (turn["logprobs"][0], turn["logprobs"][-1]) == (-2000, 0)
    assert "turn" not in first["messages"][0]


def test_without_a_tokenizer_rollouts_are_plain_text(tmp_path: Path, model: Path) -> None:
    run = finished(tmp_path / "r", model)
    (run / "tokenizer.json").unlink()
    manifest = json.loads((run / "config.json").read_text())
    manifest["config"]["model"] = "some/name"
    (run / "config.json").write_text(json.dumps(manifest))
    message = packed(write_report(run).read_text())["rollouts"][0]["messages"][1]
    assert message["text"] == "the answer is 12 🙂"
    assert message["turn"]["texts"] is None


def test_a_run_without_a_step_has_a_report(tmp_path: Path, model: Path) -> None:
    RunDir.create(tmp_path / "r", settings(model)).close()
    page = write_report(tmp_path / "r", tmp_path / "elsewhere.html").read_text()
    assert "stopped before the first step" in page
    assert "0 of 4" in page
    assert packed(page) == {"sections": [], "marks": [], "rollouts": []}


def test_a_crashed_run_shows_what_is_there(tmp_path: Path, model: Path) -> None:
    with RunDir.create(tmp_path / "r", settings(model)) as run:
        run.log(step_record(0))
        run.seal_step(0, [group(model, 0, 0, right(), right())])
        run.append_group(group(model, 1, 0, right(), Score(None, Outcome.TIMEOUT, {}, "too slow")))
    (tmp_path / "r/rollouts/step-000002.parquet").write_bytes(b"PAR1 not")
    with open(tmp_path / "r/metrics.jsonl", "a") as file:
        file.write('[1]\n{"kind": "step", "step": 1, "rew')
    page = write_report(tmp_path / "r").read_text()
    assert "stopped after 1 of 4 steps" in page
    assert "2 lines of metrics.jsonl can&#x27;t be read" in page
    assert "rollouts of step 2 can&#x27;t be read" in page
    found = [(r["step"], r["outcome"], r["value"]) for r in packed(page)["rollouts"]]
    assert found == [
        *[(0, "correct", 1.0), (0, "correct", 1.0)],
        *[(1, "correct", 1.0), (1, "timeout", None)],
    ]


def test_a_live_run_says_so(tmp_path: Path, model: Path) -> None:
    code = (
        "import sys, time; from posttrain.storage.run_dir import RunDir\n"
        "from posttrain.config import GrpoConfig\n"
        "run = RunDir.create(sys.argv[1], GrpoConfig(model='m', env='e'))\n"
        "run.log({'kind': 'step', 'step': 0}); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "up\n"
        page = write_report(tmp_path / "r").read_text()
        writer.kill()
    assert '<span class="state live">running</span>' in page
    assert "stopped after 1 of 100 steps" in write_report(tmp_path / "r").read_text()


def test_the_last_record_of_a_step_done_twice_counts(tmp_path: Path, model: Path) -> None:
    with RunDir.create(tmp_path / "r", settings(model)) as run:
        for reward in (0.1, 0.9):
            run.log(step_record(0, reward_mean=reward))
            run.log(eval_record(0, "before", reward))
    page = write_report(tmp_path / "r").read_text()
    assert chart(page, "Reward")["traces"][0]["y"] == [0.9]
    assert chart(page, "Accuracy")["traces"][-1]["y"] == [0.9]


def test_it_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def evil_run(path: Path, model: Path) -> Path:
    with RunDir.create(path, settings(model, env=EVIL), {EVIL: EVIL}) as run:
        score = Score(1.0, Outcome.CORRECT, {EVIL: 1.0, "exact": 0.5}, EVIL)
        wrong = Score(0.0, Outcome.WRONG, {}, "")
        run.seal_step(0, [group(model, 0, 0, score, wrong, text=EVIL)])
        run.log(step_record(0, reward_parts={EVIL: 1.0, "exact": 0.5}))
        run.log({"kind": "event", "step": 0, "text": EVIL})
        run.log({"kind": "skip", "step": 0, "reason": EVIL})
    return path


def test_text_of_a_model_cannot_become_part_of_the_page(tmp_path: Path, model: Path) -> None:
    page = write_report(evil_run(tmp_path / "r", model)).read_text()
    assert len(re.findall(r"<script", page)) == 3
    assert "<img" not in page
    assert "&lt;img src=x" in page
    assert packed(page)["rollouts"][0]["messages"][1]["text"] == EVIL


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path, model: Path) -> None:
    page = write_report(finished(tmp_path / "r", model)).read_text()
    assert re.findall(r"<link|<iframe|@import|\bsrc=|url\(|fetch\(|https?:", page) == []


def test_a_run_with_long_completions_makes_a_page_under_ten_megabytes(
    tmp_path: Path, model: Path
) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 122, 7))) for _ in range(3000)]
    text = " ".join(words)
    config = settings(model)
    with RunDir.create(tmp_path / "r", config) as run:
        one = rollout(model, 0, right(), text)
        for step in range(44):
            run.seal_step(step, [Group(step, 0, (one,) * 8)])
    path = write_report(tmp_path / "r")
    rollouts = packed(path.read_text())["rollouts"]
    assert path.stat().st_size < 10_000_000
    assert len({r["step"] for r in rollouts}) == 40
    assert {0, 43} <= {r["step"] for r in rollouts}
    turn = rollouts[0]["messages"][1]["turn"]
    assert len(turn["texts"]) == HEAD_TOKENS + TAIL_TOKENS
    assert turn["cut"] == [HEAD_TOKENS, one.n_completion_tokens - HEAD_TOKENS - TAIL_TOKENS]
    assert text.startswith("".join(turn["texts"][:HEAD_TOKENS]))
    assert "characters not shown" in rollouts[0]["messages"][1]["text"]


def test_pieces_join_to_the_text(model: Path) -> None:
    texts = TokenTexts.find(model, "")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    for text in ("", "the answer", "né 日本 🙂🙂 x", "🙂"):
        ids = tokenizer.encode(text).ids
        pieces = texts.pieces(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == text
    half = tokenizer.encode("🙂").ids[:2]
    assert "".join(texts.pieces(half)) == tokenizer.decode(half)


def test_steps_are_taken_evenly_with_both_ends() -> None:
    assert evenly(range(3), 40) == [0, 1, 2]
    assert evenly([], 40) == []
    many = evenly(range(1000), 40)
    assert (many[0], many[-1], len(many)) == (0, 999, 40)


def browser() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.mark.skipif(browser() is None, reason="no Chromium here")
@pytest.mark.parametrize("make", [finished, evil_run])
def test_the_page_works_in_a_browser(tmp_path: Path, model: Path, make: Any) -> None:
    path = write_report(make(tmp_path / "my run", model))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --virtual-time-budget=20000"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser() or "", *flags.split(), profile, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    dom = done.stdout
    body = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert 'data-ready="yes"' in dom
    assert "<title>my run - posttrain</title>" in dom  # nothing of the model's text has run
    assert "<img" not in body
    assert body.count('class="main-svg"') >= 5  # plotly drew
    shown = {finished: 8, evil_run: 2}[make]
    assert len(re.findall(r'class="row( on)?"', body)) == shown
    assert body.count('class="token"') > 3
