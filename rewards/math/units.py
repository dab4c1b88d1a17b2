"""Decides which words behind a number are the same unit; the policy is in ``docs/math.md``.

A unit, or any other remark behind a value, is ignored when only one side has it. Two known units
that differ make two answers differ; nothing is converted.
"""

from __future__ import annotations

import re

_KINDS = """
mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre
in inch inches; ft foot feet; yd yard; mi mile; nm nanometer nanometre
mg milligram; g gram; kg kilogram kilo; ton tonne; lb lbs pound; oz ounce
ms millisecond; s sec second; min minute; hr hour h; day; week; month; year yr; decade; century
L liter litre; ml milliliter millilitre mL; gallon gal; cup; pint; quart
N newton; J joule; kJ kj kilojoule; W watt; kW kw kilowatt; V volt
pa pascal Pa; hz hertz Hz
mol mole; K kelvin; cal calorie; kcal; ev eV
rad radian radians; degree degrees deg; celsius centigrade; fahrenheit
dollar dollars usd bucks; cent cents; euro euros eur; pound_sterling gbp; yen yuan rmb; rupee rupees
percent pct percentage
"""
_CANONICAL: dict[str, str] = {}
for _line in _KINDS.replace("\n", ";").split(";"):
    _names = _line.split()
    for _name in _names:
        _CANONICAL[_name] = _names[0]
        if len(_name) > 2 and not _name.endswith("s"):
            _CANONICAL[_name + "s"] = _names[0]
_CANONICAL["yuan"] = _CANONICAL["rmb"] = "yuan"
UNITS = frozenset(_CANONICAL) | {"mph", "kph", "kmh"}

_POWER = {"square": 2, "squared": 2, "sq": 2, "cubic": 3, "cubed": 3}
_SPEEDS = {"mph": "mi", "kmh": "km", "kph": "km"}
_PIECE = re.compile(r"[A-Za-z]+|\^|/|\d+|-")
_TEMPERATURES = {"celsius", "fahrenheit"}  # and "degree" is then a filler
_HALVES = {"am", "pm"}  # of a day
_FILLER = {
    "per",
    "of",
    "a",
    "the",
    "each",
    "unit",
    "units",
    "approximately",
    "about",
    "in",
    "total",
}
# A remark with one of these is no unit: it hedges or denies.
_HEDGES = re.compile(
    r"\b(?:or|not|if|unless|otherwise|else|maybe|possibly|perhaps|either|wrong|incorrect|except|"
    r"alternatively|instead|but|then|n't|versus|vs|depending|least|most|more|less|than|million|"
    r"billion|thousand|hundred|dozen|trillion|half|remainder|modulo|mod|base)\b",
    re.IGNORECASE,
)


_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})\b", re.IGNORECASE)


def scale(remark: str) -> tuple[int, str]:
    """(power of ten, rest of the remark): (6, " dollars") of ``million dollars``, else 0."""
    match = _SCALE.match(remark)
    return (_SCALES[match[1].lower()], remark[match.end() :]) if match else (0, remark)


def is_hedge(remark: str) -> bool:
    """Whether text behind a value changes what the answer is."""
    return bool(_HEDGES.search(remark))


def unit_of(remark: str) -> tuple[tuple[str, int], ...] | None:
    """Sorted (unit, power) pairs, or None when a word in it is not a unit."""
    powers: dict[str, int] = {}
    sign, pending, last = 1, 1, ""
    pieces = _PIECE.findall(remark.replace("_", " ").replace("per cent", "percent"))
    for i, piece in enumerate(pieces):
        word = piece if piece in _CANONICAL else piece.lower()
        if word in _SPEEDS:
            powers |= {_SPEEDS[word]: 1, _CANONICAL["hour"]: -1}
            continue
        if piece == "/" or word == "per":
            sign = -1
        elif piece.isdigit():
            if last and i and pieces[i - 1] in ("^", "-"):
                negative = pieces[i - 1] == "-"
                powers[last] = powers[last] * int(piece) * (-1 if negative else 1)
        elif word in _POWER:
            if last and word in ("squared", "cubed"):
                powers[last] *= _POWER[word]
            else:
                pending = _POWER[word]
        elif word in _CANONICAL:
            last = _CANONICAL[word]
            powers[last] = powers.get(last, 0) + sign * pending
            pending = 1
        elif word not in _FILLER and piece not in "^-":
            return None
    return tuple(sorted(powers.items()))


def differ(remark: str, other: str) -> bool:
    """Whether two remarks name known units, or halves of the day, that are not the same."""
    halves = [one.strip().lower() for one in (remark, other)]
    if set(halves) <= _HALVES:
        return halves[0] != halves[1]
    mine, theirs = dict(unit_of(remark) or ()), dict(unit_of(other) or ())
    if _TEMPERATURES & (mine.keys() | theirs.keys()):
        mine.pop("degree", None)
        theirs.pop("degree", None)
    return bool(mine and theirs and mine != theirs)
