"""Decides what in a text points at a person and is replaced: e-mail, phone, IBAN, card, IP address.

Check sums, address rules and the numbering plans of countries (the library phonenumbers) judge;
there is no language model, so names and streets are not found. A cheap pattern picks out the few
stretches that are judged, and a finding has to pass what tells it from look-alikes:

``email``  a last label of letters that is no file ending (``icon@2x.png``)
``phone``  ``+``, a context word (Tel., fax, llame ...), or separators and a trunk 0 or the US
           form; no date, no ISBN
``iban``   country form and check digits, in either case
``card``   Luhn's check digit, and 13 to 19 digits that a network issues
``ip``     public addresses; no version ("version", "v", "release" before it). A dotted one whose
           parts are all below 32 looks like a section or version number (11.5.1.1): it counts
           behind a word such as IP, address, DNS, server or host alone
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

KINDS = ("email", "iban", "card", "ip", "phone")  # where two overlap the earlier one counts
REGIONS = {"en": ("US", "GB"), "de": ("DE", "AT", "CH"), "es": ("ES", "MX", "AR")}

_IBAN_SIZES = {  # characters, by country (the SWIFT registry)
    **{"AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20},
    **{"ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IS": 26},
    **{"IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15},
    **{"PL": 28, "PT": 25, "RO": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TR": 26, "UA": 29},
    **{"AE": 23, "BR": 29, "CR": 22, "DO": 28, "GT": 28, "IL": 23, "SA": 24, "SV": 28},
}

_CANDIDATES = {
    "email": re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@[\w.-]{3,255}"),
    # Looked ahead for: the words behind an account may run into the next one. ASCII: without case
    # other letters count as I, K and S.
    "iban": re.compile(
        r"\b(?=[A-Z]{2}\d{2})"
        rf"(?=((?:{'|'.join(_IBAN_SIZES)})\d\d(?:[ -]?[A-Z0-9]){{11,30}}\b))",
        re.IGNORECASE | re.ASCII,
    ),
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
_VERSION = re.compile(  # the long ones at the end of a German compound too
    r"(?:\b(?:v|ver|rel|build)|version(?:en|es)?|versi[oó]n|release|firmware|kernel)\W{0,3}$",
    re.IGNORECASE,
)
_NETWORK = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[068]\d{12}|35\d{14}|6(?:011|4|5)\d{12,13}"
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_ADDRESS = re.compile(
    r"\b(?:ip(?:v4)?|address(?:es)?|adressen?|direcci[oó]n(?:es)?|dns|(?:name)?servers?|"
    r"servidor(?:es)?|hosts?|ping|gateway|resolver)\W{0,3}(?:(?:is|at|ist|es|are|of)\W{1,2})?$",
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
        found = candidate.group(candidate.lastindex or 0)
        before = text[max(0, candidate.start() - _BEFORE) : candidate.start()]
        if _may_be(kind, found, before):
            for start, end in _JUDGES[kind](found, language):
                yield candidate.start() + start, candidate.start() + end


def _may_be(kind: str, found: str, before: str) -> bool:
    """Whether it can be told from its look-alikes."""
    match kind:
        case "email":
            ending = found.rstrip(".-").rpartition(".")[2].lower()
            return ending.isalpha() and len(ending) > 1 and not _FILE_ENDING.fullmatch(ending)
        case "card":
            return not _BOOK.search(before)
        case "ip":
            return not _VERSION.search(before) and _is_public(found, _ADDRESS.search(before))
        case "phone":
            if _DATE.fullmatch(found) or _BOOK.search(before) or _is_isbn(found):
                return False
            told = found[0] == "+" or _TRUNK.match(found) or _US.fullmatch(found)
            return bool(told or _PHONE_WORD.search(before))
    return True


def _is_public(address: str, is_said: object) -> bool:
    """Of IPv6 global unicast with four groups written out; of IPv4 what is said to be an address,
    or is no section number."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 6:
        groups = sum(bool(group) for group in address.split(":"))
        return parsed in _GLOBAL_UNICAST and parsed.is_global and groups >= 4
    return parsed.is_global and (bool(is_said) or max(parsed.packed) >= 32)


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


def _phones(found: str, language: str) -> Iterator[tuple[int, int]]:
    """Numbers that exist in one of the language's countries, or with + anywhere."""
    from phonenumbers import PhoneNumberMatcher

    for region in REGIONS.get(language[:2]) or sum(REGIONS.values(), ()):
        matches = [(one.start, one.end) for one in PhoneNumberMatcher(found, region)]
        if matches:
            yield from matches
            return


def _iban(found: str, language: str) -> Iterator[tuple[int, int]]:
    """The country's length and the check digits (ISO 13616); words behind it are left out."""
    size = _IBAN_SIZES[found[:2].upper()]
    places = [i for i, one in enumerate(found) if one.isalnum()]
    if len(places) < size:
        return
    end = places[size - 1] + 1
    code = re.sub(r"\W", "", found[:end])
    if int("".join(str(int(one, 36)) for one in code[4:] + code[:4])) % 97 == 1:
        yield 0, end


def _card(found: str, language: str) -> Iterator[tuple[int, int]]:
    """A network's first digits and length, and Luhn's check digit (ISO/IEC 7812-1)."""
    number = re.sub(r"\D", "", found)
    digits = [int(one) for one in reversed(number)]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    if _NETWORK.fullmatch(number) and (sum(digits[::2]) + doubled) % 10 == 0:
        yield 0, len(found)


def _all(found: str, language: str) -> Iterator[tuple[int, int]]:
    yield 0, len(found.rstrip(".-"))


_JUDGES: dict[str, Callable[[str, str], Iterator[tuple[int, int]]]] = {
    "email": _all,
    "iban": _iban,
    "card": _card,
    "ip": _all,
    "phone": _phones,
}
