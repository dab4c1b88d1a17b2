"""Decides what in a text points at a person and is replaced: e-mail, phone, IBAN, card, IP address.

Presidio's recognisers judge (patterns, check sums, the phone numbers of a country), without a
language model: names and addresses of streets are not found. Each sees only the few stretches that
a cheap pattern picks out, as a recogniser over whole texts is fifty times slower, and its finding
has to pass what tells personal data from look-alikes:

``email``  a last label of letters that is no file ending (``icon@2x.png``)
``phone``  ``+``, a context word (Tel., fax, llame ...), or separators and a trunk 0 or the US
           form; no date, no ISBN
``iban``   country form and check digits; ``card``: Luhn, and 13 to 19 digits that a network issues
``ip``     public addresses; no version number: "version", "v", "release" before it
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

KINDS = ("email", "iban", "card", "ip", "phone")  # where two overlap the earlier one counts
REGIONS = {"en": ("US", "GB"), "de": ("DE", "AT", "CH"), "es": ("ES", "MX", "AR")}

_CANDIDATES = {
    "email": re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@[\w.-]{3,255}"),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b"),
    "card": re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){12,18}(?![\w-])"),
    "ip": re.compile(
        r"(?<![\w.:/-])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})"
        r"(?![\w:-]|\.\d)"
    ),
    "phone": re.compile(r"(?<![\w.,:/+-])(?:\+|\(?\d)[\d ()/.\u2011-]{6,20}\d(?![\w-]|[.,:]\d)"),
}
_FILE_ENDING = re.compile(r"png|jpe?g|gif|svg|webp|css|js|html?|py|md|local|invalid|example|test")
_PHONE_WORD = re.compile(
    r"(?:tel|phone|fon|fax|call|mobile|mobil|handy|m[oó]vil|llam\w*|whatsapp|contacto)\W{0,3}"
    r"(?:\w{2,9}\W{1,3}){0,2}$",
    re.IGNORECASE,
)
_TRUNK = re.compile(r"\(?0\d{1,5}\)?[ /.-]")  # 030 / 12345
_US = re.compile(r"(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}")
_DATE = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}(?:\D+\d{1,2})?|\d{4}\D\d{4}")
_BOOK = re.compile(r"(?:ISBN|ISSN|DOI|EAN)(?:-1[03])?\W{0,3}$", re.IGNORECASE)
_VERSION = re.compile(
    r"(?:\bv|version(?:en|es)?|versi[oó]n|release|rel|build|ver|firmware|kernel)\W{0,3}$",
    re.IGNORECASE,
)
_BEFORE = 40  # characters that say what a number is


class Pii:
    """Replaces what it finds by ``[EMAIL]``, ``[PHONE]``, ... and drops nothing.

    How many of each is in ``metadata.pii``. The regions of national phone numbers go by
    ``metadata.language``, or by all languages where that is missing.
    """

    name = "pii"

    def __init__(self, kinds: Sequence[str] = KINDS):
        if unknown := set(kinds) - set(KINDS):
            raise UsageError(f"no such kind of personal data: {sorted(unknown)}; there are {KINDS}")
        self.kinds = [kind for kind in KINDS if kind in kinds]

    def check(self, document: Document) -> str | None:
        """Always None: the text is changed in place."""
        found = self.find(document.text, str(document.metadata.get("language", "")))
        if not found:
            return None
        counts: dict[str, int] = {}
        pieces, position = [], 0
        for start, end, kind in found:
            pieces += [document.text[position:start], f"[{kind.upper()}]"]
            position = end
            counts[kind] = counts.get(kind, 0) + 1
        document.text = "".join([*pieces, document.text[position:]])
        document.metadata["pii"] = counts
        return None

    def find(self, text: str, language: str = "") -> list[tuple[int, int, str]]:
        """(start, end, kind) in order, none overlapping."""
        taken: list[tuple[int, int, str]] = []
        for kind in self.kinds:
            for start, end in _find(kind, text, language):
                if all(end <= first or start >= last for first, last, _ in taken):
                    taken.append((start, end, kind))
        return sorted(taken)


def _find(kind: str, text: str, language: str) -> Iterator[tuple[int, int]]:
    if kind == "email" and "@" not in text:
        return
    for candidate in _CANDIDATES[kind].finditer(text):
        before = text[max(0, candidate.start() - _BEFORE) : candidate.start()]
        if not _may_be(kind, candidate.group(), before):
            continue
        for recogniser in _recognisers(kind, language):
            results = recogniser.analyze(candidate.group(), recogniser.supported_entities)
            if results:
                best = max(results, key=lambda one: one.end - one.start)
                yield candidate.start() + best.start, candidate.start() + best.end
                break


def _may_be(kind: str, found: str, before: str) -> bool:
    """Whether it can be told from its look-alikes."""
    match kind:
        case "email":
            ending = found.rstrip(".-").rpartition(".")[2].lower()
            return ending.isalpha() and len(ending) > 1 and not _FILE_ENDING.fullmatch(ending)
        case "card":
            return found[0] in "3456" and not _BOOK.search(before)
        case "ip":
            return not _VERSION.search(before) and _is_public(found)
        case "phone":
            if _DATE.fullmatch(found) or _BOOK.search(before) or _is_isbn(found):
                return False
            told = found[0] == "+" or _TRUNK.match(found) or _US.fullmatch(found)
            return bool(told or _PHONE_WORD.search(before))
    return True


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_isbn(found: str) -> bool:
    """Ten digits in four groups, or thirteen from 978 or 979, with the right check digit."""
    digits = [int(one) for one in found if one.isdigit()]
    if len(digits) == 13:
        weights = [1, 3] * 6 + [1]
        is_right = sum(a * b for a, b in zip(digits, weights, strict=True)) % 10 == 0
        return digits[:3] in ([9, 7, 8], [9, 7, 9]) and is_right
    if len(digits) == 10 and len(re.findall(r"\d+", found)) == 4:
        return sum((10 - i) * digit for i, digit in enumerate(digits)) % 11 == 0
    return False


@cache
def _recognisers(kind: str, language: str) -> list[Any]:
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
    )

    class Email(EmailRecognizer):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool | None:
            """Not against the list of public suffixes, which is fetched from the network."""
            return None

    if kind == "phone":
        regions = REGIONS.get(language[:2]) or [one for all in REGIONS.values() for one in all]
        return [PhoneRecognizer(supported_regions=regions)]
    by_kind = {"email": Email, "iban": IbanRecognizer, "card": CreditCardRecognizer}
    return [by_kind.get(kind, IpRecognizer)()]
