"""Decides which words an answer consists of: LaTeX, plain text or unicode, one linear pass.

After ``rewards.math.characters`` one regular expression cuts the text into tokens; spacing and
sizing commands vanish, synonyms become one.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

from rewards.math.characters import plain
from rewards.math.limits import MAX_CHARS, MAX_DIGITS, MAX_TOKENS, TooLarge, Unreadable, names
from rewards.math.units import UNITS


class Token(NamedTuple):
    """``kind``: num, letter, word, text, cmd, begin, end, op, eof; ``spaced``: space before."""

    kind: str
    value: Any
    spaced: bool = False


# Commands that only say how something looks.
_VOID = names(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle "
    "displaystyle textstyle scriptstyle limits nolimits quad qquad thinspace enspace space "
    "hfill newline bf rm it mathstrut strut phantom nobreak allowbreak normalsize large Large "
    "null hspace* boldmath angle triangle"
)
_SYNONYM = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "sfrac": "frac", "nicefrac": "frac",
    "flatfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "leqslant": "le",
    "leqq": "le", "geq": "ge", "geqslant": "ge", "geqq": "ge", "neq": "ne", "lt": "<", "gt": ">",
    "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "vert": "|", "mid": "mid",
    "lvert": "|", "rvert": "|", "land": "and", "wedge": "and", "lor": "or", "vee": "or",
    "varnothing": "emptyset", "bigcup": "cup", "bigcap": "cap", "union": "cup", "ast": "cdot",
    "backslash": "setminus", "smallsetminus": "setminus", "degree": "circ", "degrees": "circ",
    "simeq": "approx", "thickapprox": "approx", "colon": ":", "tan": "tan", "tg": "tan",
    "ctg": "cot", "arctg": "arctan", "cosec": "csc", "asin": "arcsin", "acos": "arccos",
    "atan": "arctan", "lg": "lg", "varepsilon": "epsilon", "vartheta": "theta", "phi": "varphi",
    "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "percent": "%", "imath": "i",
    "iff": "Rightarrow", "implies": "Rightarrow", "cr": "\\\\", "mod": "pmod",
    "infin": "infty", "N": "N", "R": "R",
}  # fmt: skip
_TEXT = names(
    "text textbf textit textrm textnormal textsf texttt mbox hbox mathrm mathit mathsf mathbf "
    "mathtt bm boldsymbol operatorname emph underline textup textsc pmb mathcal mathscr "
    "mathfrak vec overrightarrow boxed fbox unit"
)
_BARE_TEXT = names(
    "text textbf textit textrm textnormal textsf texttt mbox hbox emph textup textsc"
)
FUNCTIONS = names(
    "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh ln log lg exp max min gcd "
    "lcm arccot arcsec arccsc coth sech csch det deg dim sgn arg Re Im floor ceil sqrt abs"
)
_PLAIN_WORDS = {
    "pi": "pi", "infinity": "infty", "inf": "infty", "oo": "infty", "infty": "infty",
    "theta": "theta", "alpha": "alpha", "beta": "beta", "gamma": "gamma", "lambda": "lambda",
    "and": "and", "or": "or", "union": "cup", "asin": "arcsin", "acos": "arccos",
    "atan": "arctan", "in": "in", "pm": "pm", "cup": "cup",
}  # fmt: skip

_LEX = re.compile(
    r"""(?P<space>\s+|~|\\[,;:!\ >]|\\\r?\n)
    |(?P<num>\d{1,3}(?:\\!)?
            (?:(?:,(?:\\!\ ?|\\,)?|\{,\}(?:\\!)?|\\,|\\;|\\\ |\ )\d{3})+(?!\d)(?:\.\d+)?
        |\d+\{,\}\d+|\d+\.(?=\\(?:overline|dot|bar)\b|[/*+)-])|\d+(?:\.\d+)?|\.\d+)
    |(?P<cmd>\\[a-zA-Z]+\*?)
    |(?P<symbol>\\.)
    |(?P<word>[a-zA-Z]+)
    |(?P<op>\*\*|<=|>=|!=|==|=<|=>|\.\.\.|.)""",
    re.VERBOSE | re.DOTALL,
)
_DOUBLE = re.compile(
    r"(?<!\\)\\\\(?=(?:left|right|frac|dfrac|tfrac|sqrt|text|pi|boxed|cdot|times|pm|le|ge|infty|cup"
    r"|circ|ln|log|sin|cos|tan|theta|mathrm|begin|end|quad|in|neq|leq|geq|overline|binom|alpha|beta"
    r"|lambda|mathbb|pmod|emptyset)(?![a-zA-Z]))"
)
_SCI = re.compile(r"[eE]([+-]?\d{1,6})(?![\w.])")
_PERIOD = re.compile(r"\\overline\s*\{(\d{1,40})\}|\\dot\s*\{?(\d)\}?|\\bar\s*\{(\d{1,40})\}")
_LISTS = {"cases", "aligned", "align", "gathered"}
_HALF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)
_HOUR = re.compile(r"(?<=\d)\s?([ap]m)\b", re.IGNORECASE)
_LIKE_COMMANDS = re.compile(r"(?<=\d)\s?(in|min|sec|deg)\.?\s*$")  # units at the end
_TEMPERATURE = re.compile(
    r"\^\s?\{?\s?\\circ\s?\}?\s?(?:\\(?:text|mathrm)\{[\s~]?)?([CF])\b(?![_^(])\s?\}?"
)
_SCALES = {"C": r"\text{ celsius}", "F": r"\text{ fahrenheit}"}
_CURRENCIES = {"euro", "pound", "yen", "rupee"}
_MATHEMATICS = re.compile(  # in \text{}, with a number in it
    r"(?=\D*\d)(?:[\d\s()\[\].,;+\-*/=$\\]|\band\b|\bor\b)*"
)
_COUNTED = re.compile(r"(-?\d[\d.,]*)\s+([A-Za-z]{2}[A-Za-z ]*)")  # \text{18 students}
_NOT_DIGITS = re.compile(r"[^\d.]")
_BRACE = re.compile(r"\s*\{")
_BEHIND_UNIT = re.compile(r"\s*(?:$|[\^/.,;)\]}]|\\(?:cdot|text|mathrm|,)(?![a-z]))")


class Lexer:
    """Cuts one text. ``group``: whether ``1,000`` is one number (outside brackets)."""

    def __init__(self, text: str, group: bool = True) -> None:
        if len(text) > MAX_CHARS:
            raise TooLarge(f"longer than {MAX_CHARS} characters")
        text = _HALF_DAY.sub(r"\1m", _DOUBLE.sub(lambda _: "\\", plain(text)))
        text = _LIKE_COMMANDS.sub(r"\\text{ \1}", _HOUR.sub(r"\\text{\1}", text))
        self.text = _TEMPERATURE.sub(lambda scale: _SCALES[scale[1]], text)
        self.group = group
        self.at = 0
        self.open = 0  # brackets around the place
        self.spaced = False
        self.currency = ""  # a sign in front of a number, which is a unit behind it
        self.out: list[Token] = []

    def run(self) -> list[Token]:
        """All tokens, the last of kind eof. Raises TooLarge, Unreadable."""
        while self.at < len(self.text):
            match = _LEX.match(self.text, self.at)
            assert match is not None  # the last alternative takes any character
            self.at = match.end()
            getattr(self, f"_{match.lastgroup}")(match)
            if len(self.out) > MAX_TOKENS:
                raise TooLarge(f"longer than {MAX_TOKENS} tokens")
        self._flush_currency()
        self._add("eof", None)
        return self.out

    def _flush_currency(self) -> None:
        if self.currency:
            self._add("text", self.currency)
            self.currency = ""

    def _add(self, kind: str, value: Any) -> None:
        self.out.append(Token(kind, value, self.spaced))
        self.spaced = False

    def _space(self, match: re.Match[str]) -> None:
        self.spaced = True

    def _num(self, match: re.Match[str]) -> None:
        raw = match[0]
        split = raw.find(",")
        bare_comma = split > 0 and raw[split - 1] != "{"
        if bare_comma and (self.open or not self.group or raw[0] == "0"):
            self.at = match.start() + split
            raw = raw[:split]
        elif " " in raw and self.open and "\\" not in raw:
            self.at = match.start() + raw.find(" ")
            raw = raw[: raw.find(" ")]
        if "{,}" in raw and not re.fullmatch(r"\d{1,3}((\{,\})(\\!)?\d{3})+(\.\d+)?", raw):
            raw = raw.replace("{,}", ".")
        digits = _NOT_DIGITS.sub("", raw)
        if len(digits) > MAX_DIGITS:
            raise TooLarge(f"a number of more than {MAX_DIGITS} digits")
        self._add("num", self._number(digits))
        self._flush_currency()

    def _number(self, digits: str) -> tuple[Fraction, int]:
        """(value, number of decimals as written, 0 for scientific form), with what follows it."""
        _, dot, decimals = digits.partition(".")
        value = Fraction(digits.rstrip("."))
        if dot and (period := _PERIOD.match(self.text, self.at)):
            self.at = period.end()
            block = next(group for group in period.groups() if group)
            size = 10 ** len(decimals)
            return value + Fraction(int(block), (10 ** len(block) - 1) * size), 0
        if sci := _SCI.match(self.text, self.at):
            self.at = sci.end()
            if abs(int(sci[1])) > MAX_DIGITS:
                raise TooLarge(f"an exponent of ten beyond {MAX_DIGITS}")
            return value * Fraction(10) ** int(sci[1]), 0
        return value, len(decimals)

    def _cmd(self, match: re.Match[str]) -> None:
        name = match[0][1:]
        if name.startswith(("quad", "qquad")):  # \quadx
            self.at -= len(name) - name.index("quad") - 4
            name = "quad"
        if name in _TEXT and (brace := _BRACE.match(self.text, self.at)):
            self._named(name, self._braces(brace.end()))
        elif name in ("begin", "end"):
            brace = _BRACE.match(self.text, self.at)
            environment = self._braces(brace.end()).strip("* ") if brace else ""
            if environment not in _LISTS:  # whose rows are items of a list
                self._add(name, environment)
        elif name in ("hspace", "vspace", "color", "textcolor", "label", "tag") and (
            brace := _BRACE.match(self.text, self.at)
        ):
            self._braces(brace.end())
        elif name in _VOID:
            self.spaced = self.spaced or name.startswith("q")
            if name in ("left", "right") and self.text[self.at : self.at + 1] == ".":
                self.at += 1
        else:
            name = _SYNONYM.get(name, name)
            self._bracket(name)
            self._add("op" if not name[0].isalpha() else "cmd", name)

    def _braces(self, start: int) -> str:
        """The text up to the brace that closes; moves behind it."""
        depth = 1
        for i in range(start, len(self.text)):
            char = self.text[i]
            depth += (char == "{") - (char == "}")
            if not depth:
                self.at = i + 1
                return self.text[start:i]
        raise Unreadable("a brace is not closed")

    def _named(self, command: str, inside: str) -> None:
        r"""``\text{...}`` and its kin: a letter, a function, a word, or mathematics in bold."""
        word = inside.strip()
        if command in ("boxed", "fbox", "underline") or (
            command not in _BARE_TEXT and not re.fullmatch(r"[A-Za-z\s~]*", word)
        ):
            self.text = "{" + inside + "}" + self.text[self.at :]
            self.at = 0
            return
        word = word.replace("~", " ").replace("\\ ", " ").replace("\\,", " ").strip(" $")
        last = self.out[-1] if self.out else None
        behind_value = last and (last.kind == "num" or last.value in ("}", ")"))
        if word in UNITS and behind_value and _BEHIND_UNIT.match(self.text, self.at):
            self._add("text", word)
        elif re.fullmatch(r"[A-Za-z]", word):
            self._add("letter", word)
        elif word in FUNCTIONS:
            self._add("cmd", word)
        elif word.strip(" ,.").lower() in ("and", "or"):
            self._add("cmd", word.strip(" ,.").lower())
        elif re.fullmatch(r"[-+]?\d+(\.\d+)?(/\d+)?|\\?%", word):
            self.text = " " + inside + " " + self.text[self.at :]
            self.at = 0
        elif _MATHEMATICS.fullmatch(word):
            self.text = f" {inside} " + self.text[self.at :]
            self.at = 0
        elif counted := _COUNTED.fullmatch(word):
            self.text = f" {counted[1]} \\text{{ {counted[2]}}}" + self.text[self.at :]
            self.at = 0
        elif word in _CURRENCIES and re.match(r"\s*-?[\d.]", self.text[self.at : self.at + 9]):
            self.currency = word
        elif word:
            self._add("text", word)

    def _symbol(self, match: re.Match[str]) -> None:
        char = match[0][1]
        if char in "()" or char in "[]":  # \( and \) delimit mathematics
            self.spaced = True
        elif char == "$":
            self.currency = "dollar"
        elif char == "\\":
            self._add("op", "\\\\")
        else:
            value = {"{": "\\{", "}": "\\}", "|": "|"}.get(char, char)
            self._bracket(value)
            self._add("op", value)

    def _word(self, match: re.Match[str]) -> None:
        word = match[0]
        if len(word) == 1:
            self._add("letter", word)
        elif word.lower() in ("and", "or"):
            self._add("cmd", word.lower())
        elif word in FUNCTIONS or word in _PLAIN_WORDS:
            self._add("cmd", _PLAIN_WORDS.get(word, word))
        else:
            self._add("word", word)

    def _op(self, match: re.Match[str]) -> None:
        op = {"**": "^", "<=": "le", ">=": "ge", "!=": "ne", "==": "=", "=<": "le", "=>": "ge"}.get(
            match[0], match[0]
        )
        if op == "$":
            self.spaced = True
            return
        self._bracket(op)
        self._add("cmd" if op.isalpha() else "op", op)

    def _bracket(self, op: str) -> None:
        if op in ("(", "[", "\\{", "{", "lfloor", "lceil", "langle"):
            self.open += 1
        elif op in (")", "]", "\\}", "}", "rfloor", "rceil", "rangle"):
            self.open -= 1


def tokenise(text: str, group: bool = True) -> list[Token]:
    """Tokens of an answer. Raises TooLarge or Unreadable."""
    return Lexer(text, group).run()
