"""Decides which pages are not worth opening: by their address alone.

A host is dropped with everything under it when it, or a domain it belongs to, is in the blocklist;
an address when the blocklist has it. The patterns look for whole words of host and path, accents
apart, so that "essex" or "assassin" are left alone.

A hard word alone is enough: it stands in no address of medicine, of schools or of a shop's terms.
Soft words do, and need company: three of them, where one in the host counts twice. So
``/sex-education/teens`` and ``/pharmacy/discount-policy`` pass, and ``cheap-casino.example`` does
not. The lists are short, in English, German and Spanish.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

_ADULT = (
    "porn porno pornos pornhub xnxx xvideos hentai milf milfs sexcam sexcams camgirl camgirls "
    "blowjob gangbang bukkake upskirt onlyfans sexchat "
    "pornofilm pornofilme pornovideo pornovideos sexfilm sexfilme sexvideos sexkontakte "
    "telefonsex hobbyhuren parkplatzsex fickfilme "
    "videosporno pornogratis follando chicas-desnudas sexo-gratis "
)
_ADULT_HOSTS = (".xxx", ".adult", ".sex")  # and .porn, which is a word
_SPAM = (
    "buy-viagra cheap-viagra generic-viagra viagra-online buy-cialis cialis-online payday-loan "
    "payday-loans onlinecasino online-casino slot-gacor togel situs-slot "
    "essay-writing-service replica-watches free-bitcoin crypto-giveaway "
    "viagra-kaufen potenzmittel-kaufen kredit-ohne-schufa bonus-ohne-einzahlung "
    "comprar-viagra prestamos-rapidos creditos-rapidos casino-en-linea casinos-online "
    "tragamonedas-gratis"
)
_SOFT = (
    "sex sexy xxx nude nudes naked erotic escort escorts dating casino poker slots betting judi "
    "bonus jackpot pills viagra cialis levitra pharmacy cheap discount loan loans coupon replica "
    "adult webcam fetish teen teens gratis "
    "erotik nackt nackte huren swinger seitensprung kredit kredite schufa spielautomaten "
    "sportwetten potenzmittel kostenlos kostenlose billig rabatt "
    "sexo desnuda desnudas erotico erotica putas apuestas tragamonedas prestamo prestamos "
    "creditos rapidos farmacia descuento barato baratos"
)
_WORD = re.compile(r"[a-z0-9]+")


class UrlFilter:
    """Blocklist, adult and spam patterns. A document without an address passes.

    ``blocklist``: a file with a host or an address in each line; ``#`` starts a comment.
    ``words`` are hard words of your own, of a to z (accents apart) and digits, or UsageError is
    raised; a hyphen joins words that must follow each other.
    ``soft_words``: how many are too many; 0 leaves them out.
    """

    name = "url"

    def __init__(
        self,
        blocklist: str | None = None,
        words: Iterable[str] = (),
        adult: bool = True,
        spam: bool = True,
        soft_words: int = 3,
    ) -> None:
        self._blocked = _read_blocklist(Path(blocklist)) if blocklist else frozenset[str]()
        self._adult = adult
        self._patterns = {
            "adult_url": _pattern(_ADULT.split() if adult else ()),
            "spam_url": _pattern(_SPAM.split() if spam else ()),
            "url_word": _pattern(_own(word) for word in words),
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
        if self._adult and host.endswith(_ADULT_HOSTS):
            return "adult_url"
        words = " ".join(_words(plain))
        for reason, pattern in self._patterns.items():
            if pattern and pattern.search(words):
                return reason
        soft = len(self._soft.intersection(words.split()))
        soft += len(self._soft.intersection(_words(host)))
        return "soft_url_words" if self._soft_words and soft >= self._soft_words else None


def _words(text: str) -> list[str]:
    return _WORD.findall(_without_accents(text).encode("ascii", "ignore").decode())


def _without_accents(text: str) -> str:
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(one for one in parts if not unicodedata.combining(one))


def _own(word: str) -> str:
    """The word as it is, if all of its letters are looked for: what is left of another one would
    drop addresses that do not have it."""
    if not _without_accents(word).isascii() or not _words(word):
        raise UsageError(f"url word {word!r} has to be of a to z (accents apart), digits, hyphens")
    return word


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
    alternatives = "|".join(re.escape(" ".join(_words(word))) for word in words)
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
