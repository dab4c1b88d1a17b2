"""Decides which documents a tokenizer learns from: languages in balance, not as the web has them.

A language's share is what is asked for, or its characters to the power of 1 / temperature (Conneau
and Lample 2019): 1 leaves the corpus as it is, larger numbers help small languages. Documents are
drawn by a hash of seed and place, some of a small language several times: to the count of pairs
that is the same as more text. Two passes over the files, and no document is kept in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from pretrain.checked_settings import CheckedSettings
from pretrain.data.documents import document_files, numbered_documents
from pretrain.errors import UsageError


class SampleSettings(CheckedSettings):
    """How much of which language."""

    documents: tuple[str, ...] = Field(min_length=1, description="folders of NNNNN.jsonl.gz")
    shares: dict[str, float] = Field(default={}, description="language -> share of the characters")
    temperature: float = Field(default=1.0, gt=0, description="where no shares are given")
    characters: int = Field(default=100_000_000, gt=0, description="at most")
    repeats: float = Field(default=4.0, ge=1, description="of a document, at most")
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """A document's text, and what its metadata say of it."""

    text: str
    language: str
    domain: str
    place: str  # file and line


@dataclass(frozen=True, slots=True)
class Sample:
    """Documents to read as often as one likes; one may come several times in a pass."""

    settings: SampleSettings
    rates: dict[str, float]  # how often a document of a language comes, on average
    shares: dict[str, float]
    characters: int  # that are expected

    def __iter__(self) -> Iterator[Text]:
        for text in read_texts(self.settings.documents):
            key = f"{self.settings.seed}/{text.place}"
            digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
            chance = int.from_bytes(digest, "big") / 2**64
            for _ in range(int(self.rates.get(text.language, 0.0) + chance)):
                yield text


def read_texts(folders: tuple[str, ...]) -> Iterator[Text]:
    """All documents. Raises UsageError for a folder without any, RunError for a bad one."""
    for folder in folders:
        for path in document_files(folder):
            for line, document in numbered_documents(path):
                language, domain = (
                    str(document["metadata"].get(name) or without)
                    for name, without in (("language", "unknown"), ("domain", "text"))
                )
                yield Text(document["text"], language, domain, f"{folder}/{path.name}/{line}")


def sample(settings: SampleSettings) -> Sample:
    """Count, and set the rates so that the shares come out.

    The sample is as large as the rarest language allows, up to ``characters``, and holds nothing
    twice that the shares don't ask for. Raises UsageError when a language with a share has no
    documents.
    """
    there: Counter[str] = Counter()
    for text in read_texts(settings.documents):
        there[text.language] += len(text.text)
    there = +there
    if not there:
        raise UsageError(f"there is no text in {', '.join(settings.documents)}")
    wanted = settings.shares or {
        language: count ** (1 / settings.temperature) for language, count in there.items()
    }
    if missing := sorted(language for language in wanted if language not in there):
        raise UsageError(
            f"no documents in {', '.join(missing)} for the shares of the tokenizer; there is "
            + ", ".join(f"{language} ({count} characters)" for language, count in there.items())
        )
    if min(wanted.values()) <= 0:
        raise UsageError(f"every share of the tokenizer must be above 0: {wanted}")
    shares = {language: share / sum(wanted.values()) for language, share in wanted.items()}
    passes = [there[language] / share for language, share in shares.items()]
    # as much as the rarest language can give, and no language more than it needs to be whole once
    total = min(float(settings.characters), settings.repeats * min(passes), max(passes))
    rates = {language: share * total / there[language] for language, share in shares.items()}
    return Sample(settings, rates, shares, int(total))
