"""Decides which documents are pornography by their words: short lists of our own.

The lists, for English, German and Spanish, hold words that are rare outside pornography. Words of
medicine, of the law and of education (breast, penis, rape, sexuality) are left out on purpose, as
are insults: the aim is to drop pages that sell, not pages that speak of bodies. So they miss what
is written in other words. A document goes when it has at least ``fewest`` of them and they are at
least ``share`` of its words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

WORDS = {
    "en": """blowjob blowjobs bukkake camgirl camgirls creampie cumshot cumshots deepthroat
        fisting gangbang gangbangs handjob hardcore-porn hentai milf milfs pornhub porn
        pornos pornstar pornstars rimjob sexcam sexcams threesome threesomes upskirt xxx""",
    "de": """bumsen fickbilder ficken fickfilm fickfilme fotze fotzen gangbang hobbyhuren
        livesex parkplatzsex porno pornofilm pornofilme pornos pornovideo
        pornovideos sexchat sexfilm sexfilme sexkontakte sexvideo sexvideos spermageil titten
        wichsen wichsvorlage""",
    "es": """chupapollas coños culonas follada folladas follando follar mamada mamadas
        pollas porno putas sexcam
        tetonas trío-sexual vídeosporno videosporno webcamsex """,
}
_WORD = re.compile(r"[\w-]+")


class Nsfw:
    """``languages`` whose lists count in every document, whatever language it is in."""

    name = "nsfw"

    def __init__(
        self, languages: Sequence[str] = tuple(WORDS), *, fewest: int = 3, share: float = 0.01
    ):
        if unknown := set(languages) - set(WORDS):
            raise UsageError(f"no word list for {sorted(unknown)}; there are {sorted(WORDS)}")
        if fewest < 1 or not 0 <= share <= 1:
            raise UsageError(f"fewest is {fewest}, at least 1; share is {share}, from 0 to 1")
        self._words = frozenset(word for one in languages for word in WORDS[one].split())
        self._fewest, self._share = fewest, share

    def check(self, document: Document) -> str | None:
        """``nsfw`` where the words are too many."""
        words = _WORD.findall(document.text.lower())
        hits = sum(word in self._words for word in words)
        return "nsfw" if hits >= self._fewest and hits >= self._share * len(words) else None
