"""Quality and educational value: thresholds by retention, failures counted."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from pretrain.cli import main
from pretrain.data.education import (
    Education,
    Scores,
    ScoreServer,
    distill,
    parse_score,
    score_documents,
)
from pretrain.data.folders import write_documents
from pretrain.data.quality import Quality, train_quality
from pretrain.data.score_journal import ScoreJournal
from pretrain.errors import UsageError
from tests.data_gen.chat_server import ChatServer
from tests.pretrain.documents import words

GOOD, RAW, SHARED = words(1, 150), words(2, 150), words(3, 150)


def text(seed: int, good: float) -> str:
    """Sixty words, of which a share is from one vocabulary rather than the other."""
    rng = random.Random(seed)
    return " ".join(
        rng.choice(SHARED if rng.random() < 0.5 else GOOD if rng.random() < good else RAW)
        for _ in range(60)
    )


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("quality") / "model"
    positive, negative = ([text(s, good) for s in range(250)] for good in (0.75, 0.25))
    return out, train_quality(positive, negative, out, retention=0.3)


def test_the_threshold_keeps_the_wanted_share(quality: tuple[Path, dict[str, Any]]) -> None:
    out, about = quality
    assert about["kept"]["raw"] == 0.3  # 15 of 50
    assert about["kept"]["good"] >= 0.98
    step = Quality(out)
    fresh = [Document(text(seed, 0.25), "a") for seed in range(1000, 1200)]
    kept = sum(step.check(document) is None for document in fresh) / 200
    assert kept == pytest.approx(0.3, abs=0.15)
    assert step.check(fresh[0]) in (None, "low_quality")
    assert 0 <= fresh[0].metadata["quality"] <= 1
    assert Quality(out, threshold=0).check(Document("\x00 \n", "b")) is None


def test_bad_sets_and_thresholds_are_refused(
    tmp_path: Path, quality: tuple[Path, dict[str, Any]]
) -> None:
    some = [text(s, 1) for s in range(20)]
    with pytest.raises(UsageError, match="positive set has 0 texts"):
        train_quality([], some, tmp_path / "model")
    with pytest.raises(UsageError, match="negative set has 9 texts"):
        train_quality(some, some[:9], tmp_path / "model")
    with pytest.raises(UsageError, match="retention is 20"):
        train_quality(some, some, tmp_path / "model", retention=20)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="threshold is 1.2"):
        Quality(quality[0], threshold=1.2)
    with pytest.raises(UsageError, match="is no model of this kind"):
        Quality(tmp_path)
    with pytest.raises(UsageError, match="lacks correlation"):
        Education(quality[0])


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("It explains.\nScore: 4", 4),
        ("**Score:** 0/5", 0),
        ("Score: 1? No.\nscore: 3", 3),
        ("Score: 7", None),
        ("Score: 2.5", None),
        ("Four points", None),
        ("", None),
    ],
)
def test_scores_are_read_or_there_is_none(reply: str, score: int | None) -> None:
    assert parse_score(reply) == score


def test_documents_are_scored_and_failures_counted() -> None:
    tries = dict.fromkeys(["flaky", "down"], 0)

    def behave(body: dict[str, Any]) -> Any:
        asked = body["messages"][0]["content"]
        for name in tries:
            if f"<text>\n{name}" in asked:
                tries[name] += 1
                return (503, "later") if name == "down" or tries[name] < 2 else "Score: 2"
        if "<text>\nvague" in asked:
            return "rather good"
        return (404, "no") if "<text>\nrefused" in asked else "Clear. Score: 5"

    with ChatServer(behave, delay_s=0.02) as server:
        ask = ScoreServer(server.url, "scripted", concurrency=4, retries=1)
        result = score_documents(["fine", "flaky", "down", "vague", "refused"] + ["x"] * 20, ask)
        assert server.most_in_flight == 4
        late = score_documents(["x"] * 50, ScoreServer(server.url, "scripted", deadline_s=0.0))
    assert result.scores == [5, 2, None, None, None] + [5] * 20
    assert result.failed == {"http_503": 1, "no_score": 1, "http_404": 1}
    assert tries == {"flaky": 2, "down": 2}
    assert late == Scores([None] * 50, late.failed) and late.failed == {"deadline": 50}
    gone = score_documents(["x"], ScoreServer(server.url, "scripted", retries=0))
    assert gone.failed == {"connection": 1}


def test_scores_are_kept_as_they_come_and_not_asked_for_again(tmp_path: Path) -> None:
    asked: list[str] = []
    path = tmp_path / "new" / "scores.jsonl"

    def behave(body: dict[str, Any]) -> Any:
        shown = body["messages"][0]["content"].split("<text>\n")[1].split()[0]
        asked.append(shown)
        if shown == "second":
            written.append(path.read_text().count("\n"))
        return (404, "no") if shown == "third" and len(asked) < 4 else f"Score: {len(shown) % 6}"

    written: list[int] = []
    texts = ["first", "second", "third"]
    with ChatServer(behave) as server:
        ask = ScoreServer(server.url, "scripted", concurrency=1, retries=0)
        with ScoreJournal(path, "scripted") as journal:
            first = score_documents(texts, ask, journal)
        assert (first.scores, first.failed) == ([5, 0, None], {"http_404": 1})
        assert written == [1]  # the first score, before the second was there
        path.write_text(path.read_text() + '{"asked": "torn')
        with ScoreJournal(path, "scripted") as journal:
            assert journal.number == 2
            assert score_documents([*texts, "fourth"], ask, journal).scores == [5, 0, 5, 0]
        assert asked == ["first", "second", "third", "third", "fourth"]
        with ScoreJournal(path, "scripted") as journal:
            assert score_documents([*texts, "fourth"], ask, journal).scores == [5, 0, 5, 0]
        with ScoreJournal(path, "another") as journal:
            assert score_documents(["first"], ask, journal).scores == [5]
    assert asked[5:] == ["first"]  # of the other model alone


def test_a_small_model_learns_the_scores(tmp_path: Path) -> None:
    levels = [seed % 6 for seed in range(600)]
    texts = [text(seed, level / 5) for seed, level in enumerate(levels)]
    scores: list[int | None] = [None if i % 50 == 7 else level for i, level in enumerate(levels)]
    about = distill(texts, scores, tmp_path / "model")
    assert about["texts"] == 588 and about["held_out"] == 118
    assert about["correlation"] > 0.8
    step = Education(tmp_path / "model", fewest=2.5)
    fresh = [Document(text(9000 + i, i % 2), "a") for i in range(40)]
    assert [step.check(one) for one in fresh] == ["teaches_little", None] * 20
    assert 0 <= fresh[0].metadata["education"] <= 5


_TRAINING = """
import sys
from pathlib import Path
from pretrain.data.quality import train_quality
from tests.pretrain.test_quality import text

positive, negative = ([text(s, good) for s in range(250)] for good in (0.75, 0.25))
print(train_quality(positive, negative, Path(sys.argv[1]), retention=0.3)["kept"]["good"])
"""


def test_what_stood_in_memory_is_not_learnt_from(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _TRAINING, str(tmp_path / "model")]
    dirty = os.environ | {"MALLOC_PERTURB_": "128"}  # glibc: every new block is 0x7f7f7f7f..., 3e38
    done = subprocess.run(command, cwd=root, env=dirty, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0.98


def test_too_few_scores_or_all_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 texts have a score"):
        distill(["a"] * 30, [1, 2] + [None] * 28, tmp_path / "model")
    with pytest.raises(UsageError, match="the same score"):
        distill(["a"] * 30, [3] * 30, tmp_path / "model")
    with pytest.raises(UsageError, match="fewest is 6"):
        Education(tmp_path, fewest=6)
    assert not list(tmp_path.iterdir())


def test_the_commands_make_the_models_of_the_steps(tmp_path: Path, capsys: Any) -> None:
    for name, good in (("good", 0.75), ("raw", 0.25)):
        rows = [{"text": text(s, good), "id": str(s), "metadata": {}} for s in range(60)]
        write_documents(tmp_path / name, rows)
    sets = ["--positive", str(tmp_path / "good"), "--negative", str(tmp_path / "raw")]
    assert main(["quality", str(tmp_path / "model"), *sets, "--retention", "0.25"]) == 0
    assert "25.0% of the raw ones pass" in capsys.readouterr().out
    Quality(tmp_path / "model")
    assert main(["quality", str(tmp_path / "model"), *sets]) == 2  # it is there already

    def behave(body: dict[str, Any]) -> Any:
        shown = body["messages"][0]["content"].split("<text>\n")[1].split()
        return f"Score: {min(5, sum(word in GOOD for word in shown) // 6)}"

    with ChatServer(behave) as server:
        asked = ["--documents", str(tmp_path / "good"), "--server", server.url, "--model", "m"]
        assert main(["education", str(tmp_path / "teacher"), *asked, "--limit", "40"]) == 0
    assert "40 scores; correlation" in capsys.readouterr().out
    assert len((tmp_path / "teacher.scores.jsonl").read_text().splitlines()) == 40
    Education(tmp_path / "teacher")
