"""Decides which documents read like those that somebody chose: a linear classifier of fastText.

Trained on a positive set (an encyclopaedia, manuals) against a negative one (raw pages), as for
GPT-3 (arXiv:2005.14165, appendix A) and DCLM (arXiv:2406.11794). The threshold is not guessed: it
is where the wanted share of held-out raw pages passes. fastText does not make the same model of
the same texts twice, so a model is made once and kept.

A model is a folder: ``model.bin`` (fastText's own form) and ``model.json``: the threshold, how it
was chosen, and how often held-out texts of either set are told right at it.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError
from pretrain.new_folder import new_folder

if TYPE_CHECKING:
    from datatrove.data import Document

MODEL, ABOUT = "model.bin", "model.json"
_SPACE = re.compile(r"\s+")
_LONGEST = 20_000  # characters of a text that are looked at
_EVERY = 5  # one in five texts is held out
_FEWEST = 10  # texts of a set


class Quality:
    """Drops documents below the model's threshold, or below ``threshold``."""

    name = "quality"

    def __init__(self, model: str | Path, *, threshold: float | None = None):
        about = read_about(Path(model), "threshold")
        chosen = about["threshold"] if threshold is None else threshold
        self._threshold = check_share("threshold", chosen)
        self._model = Classifier(Path(model) / MODEL)

    def check(self, document: Document) -> str | None:
        """``low_quality``; the score, from 0 to 1, goes into ``metadata.quality``."""
        score = self._model.probabilities(document.text).get("good", 0.0)
        document.metadata["quality"] = round(score, 4)
        return "low_quality" if score < self._threshold else None


def train_quality(
    positive: Iterable[str], negative: Iterable[str], out: Path, *, retention: float = 0.2
) -> dict[str, Any]:
    """Train a model into the folder ``out``; returns what ``model.json`` holds.

    ``retention``: the share of raw pages (``negative``) to keep. Raises UsageError for a set of
    fewer than ten texts and a share out of range.
    """
    check_share("retention", retention)
    sets = {"good": list(positive), "raw": list(negative)}
    for name, texts in zip(("positive", "negative"), sets.values(), strict=True):
        if len(texts) < _FEWEST:
            raise UsageError(
                f"the {name} set has {len(texts)} texts: at least {_FEWEST} are needed"
            )
    held_out = {label: texts[::_EVERY] for label, texts in sets.items()}
    rows = [
        (label, text) for label, texts in sets.items() for i, text in enumerate(texts) if i % _EVERY
    ]
    with new_folder(out) as folder:
        model = Classifier.train(rows, folder / MODEL)
        scores = {
            label: sorted(model.probabilities(text).get("good", 0.0) for text in texts)
            for label, texts in held_out.items()
        }
        n = len(scores["raw"])
        threshold = scores["raw"][min(n - 1, round(n * (1 - retention)))]
        about = {
            "threshold": threshold,
            "retention": retention,
            "held_out": {label: len(texts) for label, texts in held_out.items()},
            "kept": {
                label: sum(one >= threshold for one in values) / len(values)
                for label, values in scores.items()
            },
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=1))
    return about


class Classifier:
    """A supervised fastText model; its wrapper's own ``predict`` fails with numpy 2."""

    def __init__(self, path: Path):
        import fasttext

        self._model = fasttext.load_model(str(path)).f

    @classmethod
    def train(cls, rows: Sequence[tuple[str, str]], path: Path) -> Classifier:
        """From (label, text) to a model file. Labels hold no space."""
        import fasttext

        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            # Interleaved: fastText goes through the file in order, its rate falling.
            for i in sorted(range(len(rows)), key=lambda i: (i * 0.6180339887498949) % 1):
                file.write(f"__label__{rows[i][0]} {plain(rows[i][1])}\n")
            file.flush()
            # fastText 0.9.3 sets its start values in eleven parts, one a thread: with fewer threads
            # it learns from whatever stood in that memory, and may end anywhere, or in NaN.
            threads = max(11, len(os.sched_getaffinity(0)))
            small = {"minCount": 2, "wordNgrams": 2, "bucket": 200_000, "dim": 32, "epoch": 10}
            model = fasttext.train_supervised(file.name, lr=0.5, thread=threads, verbose=0, **small)
        model.save_model(str(path))
        return cls(path)

    def probabilities(self, text: str) -> dict[str, float]:
        """Of each label; empty for a text without a known word."""
        found = self._model.predict(plain(text) + "\n", -1, 0.0, "replace")
        return {label.removeprefix("__label__"): min(1.0, share) for share, label in found}


def plain(text: str) -> str:
    """One line in lower case, and no word that fastText would take for a label."""
    short = text[:_LONGEST].encode("utf-8", "replace").decode()
    return _SPACE.sub(" ", short.lower().replace("__label__", " ")).strip()


def check_share(name: str, value: float) -> float:
    """Raises UsageError unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is {value}: a share from 0 to 1")
    return value


def read_about(folder: Path, key: str) -> dict[str, Any]:
    """What ``model.json`` holds. Raises UsageError for a folder that is no such model."""
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
        about[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} is no model of this kind: {ABOUT} lacks {key}") from error
    return about
