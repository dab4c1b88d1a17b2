"""Decides how a document of code is rearranged for filling in the middle.

Bavarian et al. 2022 (arXiv:2207.14255): a share ``rate`` of the documents is cut at two places
drawn uniformly from its characters, and written with the middle last,

    PSM   <prefix> PREFIX <suffix> SUFFIX <middle> MIDDLE
    SPM   <prefix> <suffix> SUFFIX <middle> PREFIX MIDDLE     (their variant for joint training)

each part tokenised on its own, the end token after it. This is done to whole documents before they
are packed (their "document level"), and to characters and not to tokens: models that only saw cuts
between tokens fail where a person's cursor stands inside one (their section on the middle span).
So it happens where there still is text, when shards are written, and not in the stream.

Left out: cuts at lines, and their context level, which cuts pieces of documents after packing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from pretrain.checked_settings import CheckedSettings
from pretrain.errors import UsageError
from pretrain.tokenizer_files import TokenizerFiles

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"


class FimSettings(CheckedSettings):
    """Which documents are rearranged, how often, and with which special tokens."""

    rate: float = Field(default=0.5, ge=0, le=1, description="share of the documents")
    spm_share: float = Field(default=0.5, ge=0, le=1, description="of those: suffix first")
    domains: tuple[str, ...] = Field(default=("code",), description="whose documents")
    tokens: tuple[str, str, str] = Field(
        default=(PREFIX, SUFFIX, MIDDLE), description="of prefix, suffix, middle"
    )

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len(set(self.tokens)) != 3:
            raise ValueError(f"tokens are three different ones, not {self.tokens}")
        return self


@dataclass(frozen=True, slots=True)
class Cut:
    """A document in three parts, and the order they are written in."""

    prefix: str
    middle: str
    suffix: str
    spm: bool

    @property
    def parts(self) -> tuple[str, str, str]:
        """In the order they are written."""
        if self.spm:
            return self.suffix, self.prefix, self.middle
        return self.prefix, self.suffix, self.middle


def cut(text: str, settings: FimSettings, key: str) -> Cut | None:
    """The cut that ``key`` draws; None where the document stays as it is."""
    rng = random.Random(key)
    if rng.random() >= settings.rate:
        return None
    spm = rng.random() < settings.spm_share
    first, second = sorted(rng.randint(0, len(text)) for _ in range(2))
    return Cut(text[:first], text[first:second], text[second:], spm)


def joined(cut: Cut, parts: list[list[int]], tokens: tuple[int, int, int]) -> list[int]:
    """Ids of the parts, in the order of ``cut.parts``, with the ids of the three tokens."""
    prefix, suffix, middle = tokens
    one, two, three = parts
    if cut.spm:
        return [prefix, suffix, *one, middle, *two, *three]
    return [prefix, *one, suffix, *two, middle, *three]


def token_ids(settings: FimSettings, files: TokenizerFiles) -> tuple[int, int, int]:
    """Raises UsageError where the tokenizer lacks one of the three, or puts blanks before text."""
    prefix, suffix, middle = (files.id_of(token, "for fim") for token in settings.tokens)
    if files.tokenizer.encode("x", add_special_tokens=False).tokens[0] != "x":
        raise UsageError(
            f"{files.folder}: this tokenizer adds a blank before every text, so the parts of a "
            "document would not join: fill-in-the-middle needs one that does not"
        )
    return prefix, suffix, middle
