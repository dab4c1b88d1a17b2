"""Decides what the single pieces of an expression are: numbers, names, brackets, commands."""

from __future__ import annotations

from fractions import Fraction

from rewards.math.cursor import Cursor, Node, letter, number, product_of, signed, written
from rewards.math.limits import MAX_ITEMS, MAX_MATRIX, TooLarge, Unreadable, names
from rewards.math.tokens import FUNCTIONS, Token

_CONSTANTS = {"pi": ("const", "pi"), "infty": ("const", "inf"), "emptyset": ("empty",)}
GREEK = names(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho "
    "sigma tau upsilon varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi "
    "Psi Omega ell hbar varsigma varrho"
)
_MATRICES = {"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array", "vmatrix"}


class Atoms(Cursor):
    """The part of the parser below products; the parser proper has the rest."""

    def sum(self) -> Node:
        raise NotImplementedError

    def product(self) -> Node:
        raise NotImplementedError

    def factor(self) -> Node:
        raise NotImplementedError

    def relation(self) -> Node:
        raise NotImplementedError

    def relation_with_unit(self) -> Node:
        raise NotImplementedError

    def sign(self) -> str:
        raise NotImplementedError

    def starts_factor(self) -> bool:
        raise NotImplementedError

    def argument(self, sign: bool = False) -> Node:
        r"""What a command applies to: a group, or one token (``\frac12``, ``\sqrt3``, ``x^2``)."""
        if self.is_("{"):
            return self.deeper(self.group)
        if sign and self.is_("-", "+"):
            return signed(self.take().value, self.deeper(self.atom))
        token = self.next
        if token.kind == "num" and not sign and not token.value[1] and not token.spaced:
            return self._first_digit(token)
        return self.deeper(self.atom)

    def _first_digit(self, token: Token) -> Node:
        r"""TeX takes one digit: ``\frac12`` is 1 over 2, but ``\sqrt 10`` is meant as it looks."""
        digits = str(token.value[0])
        command = self.tokens[self.at - 1]
        if len(digits) == 1 or "/" in digits or command.value == "sqrt":
            self.take()
            return ("num", *token.value)
        self.tokens[self.at] = Token("num", (Fraction(int(digits[1:])), 0))
        return number(int(digits[0]))

    def group(self) -> Node:
        """``{...}``: one expression, or (braces that lost their backslash) a set."""
        self.expect("{")
        bars, self.bars = self.bars, 0
        items = [self.inside_group()]
        while self.accept(",", ";"):
            items.append(self.inside_group())
        if len(items) == 1 and self.accept("choose"):
            items = [("fn", "binom", (items[0], self.inside_group()))]
        self.expect("}")
        self.bars = bars
        return ("set", tuple(items)) if len(items) > 1 else items[0]

    def inside_group(self) -> Node:
        if self.is_("}"):
            raise Unreadable("empty braces")
        node = self.relation_with_unit()
        return node

    # atoms

    def atom(self) -> Node:
        token = self.next
        if token.kind == "num":
            self.take()
            if self.is_("_"):
                return self._based(token)
            return ("num", *token.value)
        if token.kind == "letter":
            self.take()
            return self._symbol(str(token.value))
        if token.kind == "word":
            return self._word()
        if token.kind == "text":
            self.take()
            if self.is_("_", "'"):
                return self._symbol(str(token.value))
            return ("text", str(token.value))
        if token.kind == "begin":
            return self._environment()
        if token.kind == "op":
            return self._bracketed()
        if token.kind == "cmd":
            return self._command()
        raise Unreadable("the answer ends too soon" if token.kind == "eof" else str(token.value))

    def _word(self) -> Node:
        """Letters without a space: a product of variables, or a word when they are many."""
        word = str(self.take().value)
        if len(word) > 3 and not self.is_("^", "+", "-", "*", "/", "_", "cdot"):
            return ("text", word)
        self.at -= 1
        self.tokens[self.at : self.at + 1] = [Token("letter", char) for char in word]
        return product_of([self.factor() for _ in word])  # xy^2 is x times y^2

    def _symbol(self, name: str) -> Node:
        while self.is_("_", "'", "prime"):
            if self.take().value != "_":
                name += "'"
            elif self.is_("{"):
                name += "_" + self._raw_group()
            else:
                name += f"_{written(self.take())}"
        if name in ("f", "g", "h") and self.values(6) == ["^", "{", "-", (1, 0), "}", "("]:
            self.at += 5
            return ("call", f"{name}^-1", self._call_arguments())
        if (
            name.rstrip("'") in ("f", "g", "h", "F", "G", "P", "Q")
            and self.is_("(")
            and not self.next.spaced
        ):
            return ("call", name, self._call_arguments())
        return letter(name)

    def _raw_group(self) -> str:
        self.expect("{")
        parts = []
        while not self.is_("}"):
            if self.next.kind == "eof" or self.is_("{"):
                raise Unreadable("a subscript")
            parts.append(written(self.take()))
        self.take()
        return "".join(parts)

    def _call_arguments(self) -> tuple[Node, ...]:
        self.expect("(")
        arguments = [self.deeper(self.relation)]
        while self.accept(","):
            arguments.append(self.deeper(self.relation))
        self.expect(")")
        return tuple(arguments)

    def _based(self, token: Token) -> Node:
        self.take()
        digits = token.value[0]
        base = self._raw_group() if self.is_("{") else written(self.take())
        base = {"two": "2", "three": "3", "eight": "8", "ten": "10"}.get(base, base)
        if not base.isdigit() or digits.denominator != 1:
            raise Unreadable(f"a number with the subscript {base!r}")
        return ("num", digits, 0) if int(base) == 10 else ("based", str(digits), int(base))

    def _bracketed(self) -> Node:
        op = self.take().value
        if op == "{":
            self.at -= 1
            node = self.group()
            return node
        if op == "|":
            return self._bars()
        if op in ("(", "[", "\\{"):
            return self._enclosed(op)
        if op == "." and self.next.kind == "num":
            raise Unreadable("a stray point")
        raise Unreadable(f"nothing can start with {op!r}")

    def _bars(self) -> Node:
        self.bars += 1
        inside = self.deeper(self.sum)
        self.bars -= 1
        self.expect("|")
        return ("fn", "abs", (inside,))

    def _enclosed(self, op: str) -> Node:
        bars, self.bars = self.bars, int(op == "\\{")  # {x | ...}, {x : ...}
        if op == "\\{" and self.accept("\\}"):
            self.bars = bars
            return ("empty",)
        items = [self.deeper(self.relation_with_unit)]
        if op == "\\{" and self.is_("mid", "|", ":"):
            return self._set_builder(items[0], bars)
        while self.accept(",", ";", "and"):
            self.accept("and")
            if not self.is_(")", "]", "\\}"):
                items.append(self.deeper(self.relation_with_unit))
            if len(items) > MAX_ITEMS:
                raise TooLarge(f"a list of more than {MAX_ITEMS} items")
        close = self.take().value
        self.bars = bars
        if op == "\\{":
            if close != "\\}":
                raise Unreadable("a set is not closed")
            return ("set", tuple(items))
        if close not in (")", "]"):
            raise Unreadable("a bracket is not closed")
        if len(items) == 1 and items[0][0] not in ("text", "unit"):
            return items[0]
        if op == "[" and all(item[0] == "tuple" and item[1] == "[" for item in items):
            return ("matrix", tuple(item[3] for item in items))
        return ("tuple", op, close, tuple(items))

    def _set_builder(self, variable: Node, bars: int) -> Node:
        r"""``\{x \mid x > 5\}``: the condition, when it is one relation."""
        self.take()
        condition = self.deeper(self.relation)
        self.expect("\\}")
        self.bars = bars
        if condition[0] != "rel":
            raise Unreadable("a set without a condition")
        return condition

    def _environment(self) -> Node:
        name = str(self.take().value)
        if name not in _MATRICES:
            raise Unreadable(f"an environment {name!r}")
        if name == "array" and self.is_("{"):
            self._raw_group()
        rows: list[list[Node]] = [[]]
        while self.next.kind != "end":
            if self.accept("\\\\"):
                rows.append([])
            elif self.accept("&"):
                pass
            else:
                rows[-1].append(self.deeper(self.sum))
            if len(rows) > MAX_MATRIX + 1 or len(rows[-1]) > MAX_MATRIX:
                raise TooLarge(f"a matrix beyond {MAX_MATRIX} x {MAX_MATRIX}")
        self.take()
        kept = tuple(tuple(row) for row in rows if row)
        if not kept or len({len(row) for row in kept}) != 1:
            raise Unreadable("the rows of a matrix differ in length")
        return ("fn", "det", (("matrix", kept),)) if name == "vmatrix" else ("matrix", kept)

    # commands

    def _command(self) -> Node:
        name = str(self.take().value)
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name == "frac":
            above = self.argument()
            return ("div", above, self.argument())
        if name == "sqrt":
            return self._root()
        if name == "binom":
            above = self.argument()
            return ("fn", "binom", (above, self.argument()))
        if name in ("lfloor", "lceil"):
            inside = self.deeper(self.sum)
            self.expect("r" + name[1:])
            return ("fn", name[1:], (inside,))
        if name == "langle":
            return self._angled()
        if name in ("sum", "prod"):
            return self._series(name)
        if name in FUNCTIONS:
            return self._function(name)
        if name in GREEK or name == "i":
            return self._symbol(name)
        if name in ("overline", "bar"):
            return ("sym", f"overline {_joined(self.argument())}")
        if name == "mathbb":
            letter = self.argument()
            return ("numbers", letter[1]) if letter != ("sym", "R") else ("reals",)
        if name == "R":
            return ("reals",)
        raise Unreadable(f"the command {name!r}")

    def _root(self) -> Node:
        index: Node = number(2)
        if self.accept("["):
            index = self.deeper(self.sum)
            self.expect("]")
        inside = self.argument()
        return ("pow", inside, ("div", number(1), index))

    def _angled(self) -> Node:
        items = [self.deeper(self.sum)]
        while self.accept(","):
            items.append(self.deeper(self.sum))
        self.expect("rangle")
        return ("tuple", "(", ")", tuple(items))

    def _series(self, name: str) -> Node:
        self.expect("_")
        self.expect("{")
        variable = self.atom()
        self.expect("=")
        start = self.deeper(self.sum)
        self.expect("}")
        self.expect("^")
        end = self.argument()
        body = self.deeper(self.product)
        if variable == ("const", "i"):  # here it runs, and is not the imaginary unit
            variable, body = ("sym", "i"), _replaced(body, variable, ("sym", "i"))
        return (name, body, variable, start, end)

    def _function(self, name: str) -> Node:
        base, power = None, None
        while self.is_("_", "^"):
            if self.take().value == "_":
                base = self.argument()
            else:
                power = self.argument(sign=True)
        if name in ("max", "min", "gcd", "lcm") and self.is_("(", "\\{"):
            self.take()
            arguments = [self.deeper(self.sum)]
            while self.accept(","):
                arguments.append(self.deeper(self.sum))
            if not self.accept(")", "\\}"):
                raise Unreadable("a bracket is not closed")
        else:
            arguments = [self._function_argument()]
        if name == "log" and base is not None:
            arguments.append(base)
        elif base is not None:
            raise Unreadable(f"{name} with a subscript")
        if name == "lg":
            name, arguments = "log", [*arguments, number(10)]
        if power == number(-1) and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            name, power = f"arc{name}", None
        if name == "sqrt":
            return ("pow", arguments[0], ("div", number(1), number(2)))
        node: Node = ("fn", {"log": "ln" if base is None and len(arguments) == 1 else "log"}.get(
            name, name), tuple(arguments))  # fmt: skip
        return ("pow", node, power) if power else node

    def _function_argument(self) -> Node:
        if self.is_("("):
            self.take()
            return self.deeper(lambda: self._enclosed("("))
        if self.is_("{"):
            return self.argument()
        sign = self.sign()
        factors = [self.factor()]
        while self.starts_factor() and not (
            self.is_("(", "[", "|", "{")
            or (self.next.kind == "cmd" and self.next.value in FUNCTIONS)
        ):
            factors.append(self.factor())
        return signed(sign, product_of(factors))


def _replaced(node: Node, old: Node, new: Node) -> Node:
    """The node with every ``old`` in it replaced."""
    if node == old:
        return new
    return tuple(_replaced(part, old, new) if isinstance(part, tuple) else part for part in node)


def _joined(node: Node) -> str:
    """The letters under a bar."""
    letters = node[1:] if node[0] == "mul" else (node,)
    if any(part[0] != "sym" for part in letters):
        raise Unreadable("a bar over an expression")
    return "".join(part[1] for part in letters)
