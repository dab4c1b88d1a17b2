"""Decides what sums, products and powers of matrices come to: a matrix of expressions."""

from __future__ import annotations

from typing import Any

from rewards.math import exact
from rewards.math.limits import MAX_CELL, MAX_MATRIX, TooLarge, Undefined, Unreadable

Node = tuple[Any, ...]


def simplified(node: Node) -> Node:
    """``node`` with matrix arithmetic carried out; unchanged where there is none.

    Raises TooLarge where an entry would be long: products of products grow without bound.
    """
    if node[0] not in ("add", "mul", "neg", "div", "pow") or not _has_matrix(node):
        return node
    try:
        return _value(node)
    except TooLarge:
        raise
    except Unreadable:
        return node


def _has_matrix(node: Any) -> bool:
    return (
        isinstance(node, tuple)
        and bool(node)
        and (node[0] == "matrix" or (node[0] != "fn" and any(_has_matrix(part) for part in node)))
    )


def _value(node: Node) -> Node:
    if node[0] == "matrix" or not _has_matrix(node):
        return node
    if node[0] == "neg":
        return _scaled(_value(node[1]), ("num", -1, 0))
    if node[0] == "div" and not _has_matrix(node[2]):
        return _scaled(_value(node[1]), ("div", ("num", 1, 0), node[2]))
    if node[0] == "pow":
        return _power(_value(node[1]), node[2])
    if node[0] in ("add", "mul"):
        result = _value(node[1])
        for part in node[2:]:
            result = (_sum if node[0] == "add" else _product)(result, _value(part))
        return result
    raise Unreadable(f"{node[0]} of a matrix")


def _matrix(rows: Any) -> Node:
    return ("matrix", tuple(tuple(_entry(x) for x in row) for row in rows))


def _entry(node: Node) -> Node:
    """An entry as short as it can be: a number where it is one."""
    if not exact.variables(node):
        try:
            return ("num", exact.value(node), 0)
        except (exact.Irrational, Undefined):
            pass
    if _size(node) > MAX_CELL:
        raise TooLarge(f"an entry of a matrix of more than {MAX_CELL} parts")
    return node


def _size(node: Any) -> int:
    return 1 + sum(map(_size, node)) if isinstance(node, tuple) else 1


def _scaled(matrix: Node, factor: Node) -> Node:
    return _matrix([("mul", factor, x) for x in row] for row in matrix[1])


def _sum(a: Node, b: Node) -> Node:
    if (
        a[0] != "matrix"
        or b[0] != "matrix"
        or len(a[1]) != len(b[1])
        or len(a[1][0]) != len(b[1][0])
    ):
        raise Unreadable("a sum of matrices of different sizes")
    return _matrix(
        [("add", x, y) for x, y in zip(row, other, strict=True)]
        for row, other in zip(a[1], b[1], strict=True)
    )


def _product(a: Node, b: Node) -> Node:
    if a[0] != "matrix":
        return ("mul", a, b) if b[0] != "matrix" else _scaled(b, a)
    if b[0] != "matrix":
        return _scaled(a, b)
    if len(a[1][0]) != len(b[1]):
        raise Unreadable("a product of matrices that do not fit")
    columns = list(zip(*b[1], strict=True))
    return _matrix(
        [("add", *(("mul", x, y) for x, y in zip(row, column, strict=True))) for column in columns]
        for row in a[1]
    )


def _power(matrix: Node, exponent: Node) -> Node:
    if exponent == ("sym", "T"):
        return _matrix(zip(*matrix[1], strict=True))
    if exponent[0] != "num" or exponent[1] not in range(1, MAX_MATRIX + 1):
        raise Unreadable("a power of a matrix")
    result = matrix
    for _ in range(int(exponent[1]) - 1):
        result = _product(result, matrix)
    return result
