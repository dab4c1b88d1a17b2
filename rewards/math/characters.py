"""Decides which characters are only another form of a plain one, or cannot be seen at all.

Control characters are kept: an answer with a NUL in it is not a number.
"""

from __future__ import annotations

import re
import unicodedata

_SIMPLE = {
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "×": r"\times ",
    "✕": r"\times ",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "∗": "*",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≃": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "Ø": r"\emptyset ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "∧": r"\text{ and }",
    "∨": r"\text{ or }",
    "π": r"\pi ",
    "€": r"\text{ euro }",
    "£": r"\text{ pound }",
    "¥": r"\text{ yen }",
    "₹": r"\text{ rupee }",
    "¢": r"\text{ cent }",
    "“": '"',
    "”": '"',
    "’": "'",
    "‘": "'",
    "′": "'",
    "，": ",",
    "；": ";",
    "｜": "|",
    "、": ",",
    "。": ".",
    "ⅈ": "i",
    "ⅇ": "e",
    "\u00a0": " ",
}
for _i, _name in enumerate(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "omicron",
        ".",
        "rho",
        "varsigma",
        "sigma",
        "tau",
        "upsilon",
        "varphi",
        "chi",
        "psi",
        "omega",
    ]
):
    if _name not in ".":
        _SIMPLE[chr(0x3B1 + _i)] = f"\\{_name} "
for _char, _name in {"Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Φ": "Phi", "Ω": "Omega"}.items():
    _SIMPLE[_char] = f"\\{_name} "
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_SCRIPTS = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+)|([₀₁₂₃₄₅₆₇₈₉₊₋]+)")


def plain(text: str) -> str:
    """``text`` with every character in its plainest form. Linear in its length."""
    if text.isascii():
        return text
    text = _SCRIPTS.sub(_script, text)
    return "".join(_plain_char(char) for char in text)


def _script(match: re.Match[str]) -> str:
    if match[1]:
        return "^{" + match[1].translate(_SUPER) + "}"
    return "_{" + match[2].translate(_SUB) + "}"


def _plain_char(char: str) -> str:
    if char.isascii():
        return char
    if char in _SIMPLE:
        return _SIMPLE[char]
    category = unicodedata.category(char)
    if category == "Cf":  # zero-width, bidirectional marks, byte-order mark
        return ""
    if category == "Zs":
        return " "
    folded = unicodedata.normalize("NFKC", char)
    if "⁄" in folded:  # ½ -> 1⁄2
        above, _, below = folded.partition("⁄")
        return f"\\frac{{{above}}}{{{below}}}"
    return _SIMPLE.get(folded, folded)
