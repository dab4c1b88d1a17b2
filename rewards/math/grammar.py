"""Decides what an answer means: a recursive-descent parser from tokens to nested tuples.

A node is ``(kind, ...)``; the kinds::

    num value decimals     an exact Fraction, and how many decimals it was written with
    sym name               a variable; subscripts and primes belong to the name
    const name             pi, e, i, inf
    add ..., mul ..., div a b, pow a b, neg a, pm a, mp a (sign), fact a, pct a, degree a
    fn name args           sin, log (base is the second argument), abs, floor, binom, max, ...
    call name args         a function without a meaning: f(x)
    sum / prod body variable from to
    based digits base      204_5
    tuple "(" ")" items    pairs, intervals (both brackets are kept)
    set items
    list items joiner      items side by side, in no brackets; joiner: "or" if that word is there
    union / inter / minus a b, reals, numbers name, empty
    rel operators items    a chain: a < b <= c
    modulo rel number      a congruence
    ratio items            11:21
    matrix rows
    text words             a word, a name, a letter of choice
    unit node text         a quantity with what stood behind it

Depth, length and size are bounded by ``rewards.math.limits``; nothing is evaluated here. What is
not understood raises Unreadable: it is never skipped.
"""

from __future__ import annotations

from rewards.math.atoms import GREEK, Atoms
from rewards.math.cursor import Node, product_of, signed, written
from rewards.math.limits import MAX_ITEMS, TooLarge, Unreadable
from rewards.math.normal import usual
from rewards.math.tokens import FUNCTIONS, tokenise
from rewards.math.units import UNITS

RELATIONS = {"=", "<", ">", "le", "ge", "ne", "in", "approx", "equiv"}
_SEPARATORS = {",", ";", "and", "or", "\\\\"}
_SHORT_WORDS = {"no", "am", "pm", "an"}


def parse(text: str, group: bool = True) -> Node:
    """The node of one answer. Raises Unreadable (TooLarge for what exceeds a bound)."""
    parser = Parser(tokenise(usual(text), group))
    node = parser.answer()
    if parser.next.kind != "eof":
        raise Unreadable(f"nothing is expected before {parser.next.value!r}")
    return node


class Parser(Atoms):
    """One pass over the tokens of one answer, with one token of look-ahead."""

    # lists and relations

    def answer(self) -> Node:
        """Items between commas; semicolons, "and" and "or" make groups where those hold tuples."""
        groups: list[list[Node]] = [[]]
        joiner = ""
        while True:
            before = self.at
            while self.is_(*_SEPARATORS):
                token = self.take()
                joiner = token.value if token.value in ("and", "or") else joiner
                strong = token.value != "," and (self.at - before == 1)
                if strong and groups[-1] and not self.is_(","):
                    groups.append([])
            if self.next.kind == "eof":
                break
            if before == self.at and groups[0]:
                raise Unreadable(f"nothing is expected before {self.next.value!r}")
            groups[-1].append(self.item())
            if sum(map(len, groups)) > MAX_ITEMS:
                raise TooLarge(f"a list of more than {MAX_ITEMS} items")
        return _grouped([group for group in groups if group], joiner)

    def item(self) -> Node:
        self.accept("approx")
        if self._starts_words() and (label := self._label()):
            return label
        node = self.relation()
        unit = self.trailing_text()
        return ("unit", node, unit) if unit else node

    def _starts_words(self) -> bool:
        """Text, a longer word, or one of the words of two letters that are answers."""
        token = self.next
        if token.kind != "word":
            return token.kind == "text"
        return len(token.value) > 2 or token.value.lower() in _SHORT_WORDS

    def _label(self) -> Node | None:
        """Words in front of "=" or ":" name what follows; words alone are the answer."""
        start, words = self.at, []
        while self.next.kind in ("text", "word", "letter", "num") or self.is_(*"()'-./&"):
            words.append(written(self.take()))
        name = " ".join(words)
        if self.accept("=", ":", "approx"):
            return ("rel", ("=",), (("sym", name), self.relation_with_unit()))
        if self.next.kind == "eof" or self.is_(*_SEPARATORS):
            return ("text", name)
        self.at = start
        return None

    def relation_with_unit(self) -> Node:
        node = self.relation()
        unit = self.trailing_text()
        return ("unit", node, unit) if unit else node

    def trailing_text(self) -> str:
        """A unit or a remark behind a value, up to the next separator; "" when there is none.

        Mathematics behind text is a hedge ("42 if ..., else 17") and not dropped.
        """
        if self.next.kind not in ("text", "word"):
            return ""
        words, braces = [written(self.take())], 0
        while not (self.next.kind == "eof" or self.is_(*_SEPARATORS, ")", "]", "\\}")):
            braces += self.is_("{") - self.is_("}")
            if braces < 0:
                break
            token = self.take()
            if (
                token.kind in ("text", "word", "letter")
                or token.value in ("^", "/", "{", "}", ".")
                or token.value in ("-", "cdot", "*", "_")
                or (token.kind == "num" and words[-1] in ("^", "{", "-"))
            ):
                words.append(written(token))
            else:
                raise Unreadable(f"mathematics behind text: {token.value!r}")
        return " ".join(words)

    def relation(self) -> Node:
        items, operators = [self.ratio()], []
        while self.next.kind in ("op", "cmd") and self.next.value in RELATIONS:
            operators.append(self.take().value)
            items.append(self.ratio())
        node = ("rel", tuple(operators), tuple(items)) if operators else items[0]
        if self.accept("pmod"):
            return ("modulo", node, self.argument())
        return node

    def ratio(self) -> Node:
        items = [self.union()]
        while self.is_(":") and not self.bars:
            self.take()
            items.append(self.union())
        return ("ratio", tuple(items)) if len(items) > 1 else items[0]

    def union(self) -> Node:
        node = self.sum()
        names = {"cup": "union", "cap": "inter", "setminus": "minus"}
        while self.is_(*names):
            node = (names[self.take().value], node, self.sum())
        return node

    # arithmetic

    def sum(self) -> Node:
        terms = []
        sign = self.sign()
        terms.append(signed(sign, self.product()))
        while self.is_("+", "-", "pm", "mp"):
            sign = self.take().value
            if self.is_("+", "-"):  # 2 - -3
                sign = {"--": "+", "+-": "-", "-+": "-", "++": "+"}.get(
                    sign + self.take().value, "?"
                )
            terms.append(signed(sign, self.product()))
        return ("add", *terms) if len(terms) > 1 else terms[0]

    def sign(self) -> str:
        sign = "+"
        while self.is_("+", "-", "pm", "mp"):
            token = self.take().value
            if token == "-":
                sign = {"+": "-", "-": "+"}.get(sign, "?")
            elif token != "+":
                sign = token if sign == "+" else "?"
        return sign

    def product(self) -> Node:
        node = self.factor()
        factors = [node]
        while True:
            if self.accept("cdot", "times", "*"):
                sign = self.sign()
                factors.append(signed(sign, self.factor()))
            elif self.accept("/", "div"):
                sign = self.sign()
                below = signed(sign, self.factor())
                factors = [("div", product_of(factors), below)]
            elif self.starts_factor():
                if self.next.kind == "num" and self.tokens[self.at - 1].kind == "num":
                    factors[-1] = self._mixed(factors[-1])
                else:
                    factors.append(self.factor())
            else:
                return product_of(factors)

    def _mixed(self, whole: Node) -> Node:
        """``3 1/2``: two numbers side by side mean nothing else."""
        above = self.take().value[0]
        if self.accept("/") and self.next.kind == "num" and whole[0] == "num":
            below = self.take().value[0]
            if 0 < above < below and {above.denominator, below.denominator} == {1} == {
                whole[1].denominator
            }:
                return ("num", whole[1] + above / below, 0)
        raise Unreadable("two numbers side by side")

    def starts_factor(self) -> bool:
        token = self.next
        if token.kind in ("num", "letter"):
            return True
        if token.kind == "word":  # "2xy", but not "5 apples"
            return not token.spaced and len(token.value) <= 3 and token.value not in UNITS
        if token.kind == "begin":
            return True
        if token.value == "|":
            return not self.bars
        if token.value in ("(", "[", "{", "\\{"):
            return True
        return token.kind == "cmd" and (
            token.value in FUNCTIONS
            or token.value in GREEK
            or token.value
            in ("frac", "sqrt", "pi", "binom", "infty", "lfloor", "lceil", "overline")
        )

    def factor(self) -> Node:
        """An atom with what is written behind it: powers, !, %, degrees."""
        start = self.at
        node = self.deeper(self.atom)
        if node[0] == "num" and not node[2] and self.is_("frac") and self.at == start + 1:
            node = self._mixed_fraction(node)
        while True:
            if self.is_("^"):
                node = self._power(node)
            elif self.accept("!"):
                node = ("fact", node)
            elif self.accept("%"):
                node = ("pct", node)
            elif self.accept("circ"):
                node = ("degree", node)
            else:
                return node

    def _mixed_fraction(self, whole: Node) -> Node:
        r"""``3\frac{1}{2}`` is three and a half when the fraction is a proper one of integers."""
        start = self.at
        fraction = self.deeper(self.atom)
        above, below = fraction[1], fraction[2]
        proper = above[0] == below[0] == "num" and 0 < above[1] < below[1]
        if proper and {x[1].denominator for x in (whole, above, below)} == {1}:
            return ("num", whole[1] + above[1] / below[1], 0)
        self.at = start
        return whole

    def _power(self, base: Node) -> Node:
        self.take()
        if self.accept("circ"):
            return ("degree", base)
        if self.is_("{") and self.peek().value == "circ" and self.peek(2).value == "}":
            self.at += 3
            return ("degree", base)
        if self.is_("{") and self.peek().value in ("prime", "'"):
            raise Unreadable("a derivative")
        exponent = self.argument(sign=True)
        if base == ("sym", "e") or base == ("const", "e"):
            return ("fn", "exp", (exponent,))
        if self.is_("^"):  # a^b^c, from ** or from bad TeX: the right one binds first
            exponent = self.deeper(lambda: self._power(exponent))
        return ("pow", base, exponent)


def _grouped(groups: list[list[Node]], joiner: str) -> Node:
    """One node of the groups between strong separators.

    ``p = 5, q = 2; p = 7, q = 2`` is two tuples; otherwise everything is one flat list.
    """
    names = [tuple(_name(item) for item in group) for group in groups]
    if len(groups) > 1 and len(names[0]) > 1 and None not in names[0] and len(set(names)) == 1:
        tuples = [("tuple", "(", ")", tuple(item[2][1] for item in group)) for group in groups]
        return ("list", tuple(tuples), "")
    items = tuple(item for group in groups for item in group)
    if not items:
        raise Unreadable("no answer")
    return items[0] if len(items) == 1 else ("list", items, joiner)


def _name(item: Node) -> Node | None:
    """The variable that an item assigns."""
    if item[0] == "rel" and item[1] == ("=",) and item[2][0][0] == "sym":
        return tuple(item[2][0])
    return None
