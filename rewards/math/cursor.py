"""Decides how a parser walks over tokens, and how the smallest nodes are made."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rewards.math.limits import MAX_DEPTH, TooLarge, Unreadable
from rewards.math.tokens import Token

Node = tuple[Any, ...]


class Cursor:
    """One pass over the tokens of one answer, with one token of look-ahead."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0  # | | open around the place
        self.limits = 0  # inside the bounds of a sum, where "=" is no relation

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.tokens[self.at]
        if token.kind != "eof":
            self.at += 1
        return token

    def is_(self, *values: str) -> bool:
        token = self.next
        return token.kind in ("op", "cmd") and token.value in values

    def values(self, n: int) -> list[Any]:
        """What the next ``n`` tokens are."""
        return [token.value for token in self.tokens[self.at : self.at + n]]

    def accept(self, *values: str) -> bool:
        if self.is_(*values):
            self.at += 1
            return True
        return False

    def expect(self, value: str) -> None:
        if not self.accept(value):
            raise Unreadable(f"expected {value!r}, not {self.next.value!r}")

    def deeper(self, parse_inside: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge(f"more than {MAX_DEPTH} levels of brackets")
        node = parse_inside()
        self.depth -= 1
        return node


def number(value: int) -> Node:
    return ("num", Fraction(value), 0)


def written(token: Token) -> str:
    if token.kind == "num":
        return str(token.value[0])
    return str(token.value)


def letter(name: str) -> Node:
    return ("const", name) if name in ("e", "i") else ("sym", name)


def signed(sign: str, node: Node) -> Node:
    if sign == "+":
        return node
    if sign == "-":
        return ("num", -node[1], node[2]) if node[0] == "num" else ("neg", node)
    if sign in ("pm", "mp"):
        return (sign, node)
    raise Unreadable("signs in a row")


def product_of(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else ("mul", *factors)
