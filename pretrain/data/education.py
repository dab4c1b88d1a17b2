"""Decides how much a document teaches: scores of a large model, distilled into a small one.

As FineWeb-Edu did (arXiv:2406.17557): a language model behind an OpenAI-compatible server scores a
sample from 0 to 5; a fastText classifier with one label for each score learns them, and its
expected score, the mean of 0 to 5 by probability, judges the corpus. A document whose request
failed or whose reply holds no score has none: it is counted by reason, never guessed.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pretrain.data.quality import ABOUT, MODEL, Classifier, read_about
from pretrain.errors import UsageError
from pretrain.new_folder import new_folder

if TYPE_CHECKING:
    import httpx
    from datatrove.data import Document

    from pretrain.data.score_journal import ScoreJournal

HIGHEST = 5
PROMPT = """Judge how useful the text below would be for teaching at school or in a first year of \
study. Give one point for each of these that holds:
1. it has some facts on a subject that is taught, whatever else is on the page;
2. it treats that subject in full sentences and in an order that can be followed;
3. it explains notions rather than only naming them, and nothing of it is advertising;
4. a teacher could hand it out with few changes: it is clear, correct in form and complete;
5. it teaches very well: step by step, with examples or reasons, and nothing beside the subject.

The text:
<text>
{text}
</text>

Say in one or two sentences why, then end with a line of the form "Score: N", N from 0 to 5."""
_SCORE = re.compile(r"\bscore\W{1,4}(\d+)(?:\s*/\s*5)?\b(?![.,]\d)", re.IGNORECASE)
_EXCERPT = 3000  # characters of a document that are shown
_EVERY, _FEWEST = 5, 20


@dataclass(frozen=True, slots=True)
class ScoreServer:
    """Where and how to ask. ``deadline_s`` is for all documents together."""

    url: str  # .../v1
    model: str
    concurrency: int = 32
    retries: int = 3
    request_s: float = 60.0
    deadline_s: float = 3600.0
    api_key: str = ""


@dataclass(slots=True)
class Scores:
    """By document, None where there is none; ``failed`` says why, by reason."""

    scores: list[int | None]
    failed: Counter[str] = field(default_factory=Counter)


def parse_score(reply: str) -> int | None:
    """The last "Score: N" of a reply; None where there is none, or it is out of range."""
    found = _SCORE.findall(reply)
    score = int(found[-1]) if found else -1
    return score if 0 <= score <= HIGHEST else None


def score_documents(
    texts: Sequence[str], server: ScoreServer, journal: ScoreJournal | None = None
) -> Scores:
    """Ask the server about each text; what failed after its retries is counted.

    ``journal`` keeps each score as it comes, and texts that have one there are not asked about.
    """
    result = Scores([None] * len(texts))
    if journal is not None:
        result.scores = [journal.get(_request(text)) for text in texts]
    todo = [i for i, score in enumerate(result.scores) if score is None]
    asyncio.run(_score_all(texts, todo, server, result, journal))
    return result


async def _score_all(
    texts: Sequence[str],
    numbers: Sequence[int],
    server: ScoreServer,
    result: Scores,
    journal: ScoreJournal | None,
) -> None:
    import httpx

    todo = iter(numbers)
    end = time.monotonic() + server.deadline_s
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    limits = httpx.Limits(max_connections=server.concurrency)
    async with httpx.AsyncClient(headers=headers, limits=limits) as client:

        async def work() -> None:
            for i in todo:  # one iterator for all workers
                request = _request(texts[i])
                outcome = await _score_one(client, server, request, end)
                if not isinstance(outcome, int):
                    result.failed[outcome] += 1
                    continue
                result.scores[i] = outcome
                if journal is not None:
                    journal.add(request, outcome)

        await asyncio.gather(*(work() for _ in range(server.concurrency)))


def _request(text: str) -> str:
    return PROMPT.format(text=text[:_EXCERPT])


async def _score_one(
    client: httpx.AsyncClient, server: ScoreServer, request: str, end: float
) -> int | str:
    """The score, or why there is none."""
    import httpx

    message = {"role": "user", "content": request}
    body = {"model": server.model, "messages": [message], "max_tokens": 256, "temperature": 0.0}
    why = "deadline"
    for attempt in range(server.retries + 1):
        left = end - time.monotonic()
        if left <= 0:
            return "deadline"
        try:
            async with asyncio.timeout(min(left, server.request_s)):
                reply = await client.post(f"{server.url}/chat/completions", json=body, timeout=None)
            if reply.status_code == 200:
                score = parse_score(reply.json()["choices"][0]["message"]["content"] or "")
                return "no_score" if score is None else score
            why = f"http_{reply.status_code}"
            if reply.status_code < 500 and reply.status_code not in (408, 429):
                return why
        except TimeoutError:
            why = "timed_out"
        except httpx.HTTPError:
            why = "connection"
        except (ValueError, KeyError, IndexError, TypeError):
            return "no_reply"  # 200, and not what a chat server answers
        await asyncio.sleep(max(0.0, min(0.25 * 2**attempt, end - time.monotonic())))
    return why


class Education:
    """Drops documents whose expected score is below ``fewest``."""

    name = "education"

    def __init__(self, model: str | Path, *, fewest: float = 3.0):
        if not 0 <= fewest <= HIGHEST:
            raise UsageError(f"fewest is {fewest}: a score from 0 to {HIGHEST}")
        read_about(Path(model), "correlation")
        self._model, self._fewest = Classifier(Path(model) / MODEL), fewest

    def check(self, document: Document) -> str | None:
        """``teaches_little``; the score goes into ``metadata.education``."""
        score = expected_score(self._model, document.text)
        document.metadata["education"] = round(score, 3)
        return "teaches_little" if score < self._fewest else None


def expected_score(model: Classifier, text: str) -> float:
    """The mean of the scores by their probability; 0 for a text without a known word."""
    shares = model.probabilities(text)
    return sum(int(label) * share for label, share in shares.items()) / (sum(shares.values()) or 1)


def distill(texts: Sequence[str], scores: Sequence[int | None], out: Path) -> dict[str, Any]:
    """Train the small model into the folder ``out``; returns what ``model.json`` holds: how its
    expected scores correlate (Pearson) with the large model's on every fifth text, held out.

    Raises UsageError for too few scored texts or scores that are all the same.
    """
    rows = [(score, text) for score, text in zip(scores, texts, strict=True) if score is not None]
    if len(rows) < _FEWEST:
        raise UsageError(f"{len(rows)} texts have a score: at least {_FEWEST} are needed")
    held_out, rest = rows[::_EVERY], [row for i, row in enumerate(rows) if i % _EVERY]
    if min(len({score for score, _ in part}) for part in (held_out, rest)) < 2:
        raise UsageError("every text has the same score: there is nothing to learn")
    with new_folder(out) as folder:
        model = Classifier.train([(str(score), text) for score, text in rest], folder / MODEL)
        judged = [expected_score(model, text) for _, text in held_out]
        correlation = float(np.corrcoef(judged, [score for score, _ in held_out])[0, 1])
        about: dict[str, Any] = {
            "correlation": round(correlation, 4),
            "held_out": len(held_out),
            "texts": len(rows),
            "scores": dict(Counter(score for score, _ in rows)),
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
    return about
