"""Decides which pages are not worth opening: by their address alone.

A host is dropped with everything under it when it, or a domain it belongs to, is in the blocklist;
an address when the blocklist has it. The patterns look for whole words of host and path, so that
"essex" or "assassin" are left alone: one hard word, or two soft ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

_ADULT = (
    "porn porno pornos pornhub xxx xnxx xvideos hentai milf milfs sexcam sexcams camgirl camgirls "
    "escorts blowjob gangbang bukkake nudes upskirt onlyfans sexchat pornofilme sexfilme"
)
_SPAM = (
    "viagra cialis levitra payday-loan payday-loans onlinecasino online-casino slot-gacor "
    "judi togel situs-slot essay-writing-service replica-watches free-bitcoin crypto-giveaway"
)
_SOFT = (
    "sex sexy nude naked erotic escort dating casino poker slots betting bonus jackpot pills "
    "pharmacy cheap discount loan loans coupon replica adult webcam fetish teen teens gratis"
)
_WORD = re.compile(r"[^a-z0-9]+")


class UrlFilter:
    """Blocklist, adult and spam patterns. A document without an address passes.

    ``blocklist``: a file with a host or an address in each line; ``#`` starts a comment.
    ``words`` are hard words of your own; a hyphen joins words that must follow each other.
    """

    name = "url"

    def __init__(
        self,
        blocklist: str | None = None,
        words: Iterable[str] = (),
        adult: bool = True,
        spam: bool = True,
        soft_words: int = 2,
    ) -> None:
        self._blocked = _read_blocklist(Path(blocklist)) if blocklist else frozenset[str]()
        self._patterns = {
            "adult_url": _pattern(_ADULT.split() if adult else ()),
            "spam_url": _pattern(_SPAM.split() if spam else ()),
            "url_word": _pattern(word.lower() for word in words),
        }
        self._soft = frozenset(_SOFT.split())
        self._soft_words = soft_words

    def check(self, document: Document) -> str | None:
        address = str(document.metadata.get("url") or "")
        if not address:
            return None
        host, plain = _parts(address)
        if self._blocked and not self._blocked.isdisjoint((plain, *_domains(host))):
            return "blocklist"
        words = " ".join(_WORD.split(plain))
        for reason, pattern in self._patterns.items():
            if pattern and pattern.search(words):
                return reason
        if self._soft_words and len(self._soft.intersection(words.split())) >= self._soft_words:
            return "soft_url_words"
        return None


def _parts(address: str) -> tuple[str, str]:
    """(host, address without scheme, "www." and final slash), lower case."""
    try:
        split = urlsplit(unquote(address).lower())
        host = split.hostname or ""
    except ValueError:  # brackets that are no IPv6 address
        return "", address.lower()
    host = host.removeprefix("www.")
    query = f"?{split.query}" if split.query else ""
    return host, f"{host}{split.path}{query}".rstrip("/")


def _domains(host: str) -> Iterable[str]:
    """The host and every domain above it that still has a dot: a.example.com, example.com."""
    labels = host.split(".")
    return (".".join(labels[i:]) for i in range(max(len(labels) - 1, 1)))


def _pattern(words: Iterable[str]) -> re.Pattern[str] | None:
    alternatives = "|".join(re.escape(" ".join(_WORD.split(word))) for word in words)
    return re.compile(rf"(?<![a-z0-9])(?:{alternatives})(?![a-z0-9])") if alternatives else None


def _read_blocklist(path: Path) -> frozenset[str]:
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the blocklist {path}: {error}") from error
    entries = (line.split("#")[0].strip() for line in lines)
    return frozenset(
        _parts(entry if "://" in entry else f"http://{entry}")[1] for entry in entries if entry
    )
