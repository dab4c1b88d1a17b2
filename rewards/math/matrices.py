"""Decides what sums and products of matrices come to: a matrix of expressions."""

from __future__ import annotations

from typing import Any

from rewards.math.limits import Unreadable

Node = tuple[Any, ...]


def simplified(node: Node) -> Node:
    """``node`` with matrix arithmetic carried out; unchanged where there is none."""
    if node[0] not in ("add", "mul", "neg", "div", "pow") or not _has_matrix(node):
        return node
    try:
        return _value(node)
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
    if node[0] in ("add", "mul"):
        result = _value(node[1])
        for part in node[2:]:
            result = (_sum if node[0] == "add" else _product)(result, _value(part))
        return result
    raise Unreadable(f"{node[0]} of a matrix")


def _scaled(matrix: Node, factor: Node) -> Node:
    return ("matrix", tuple(tuple(("mul", factor, x) for x in row) for row in matrix[1]))


def _sum(a: Node, b: Node) -> Node:
    if (
        a[0] != "matrix"
        or b[0] != "matrix"
        or len(a[1]) != len(b[1])
        or len(a[1][0]) != len(b[1][0])
    ):
        raise Unreadable("a sum of matrices of different sizes")
    return ("matrix", tuple(
        tuple(("add", x, y) for x, y in zip(row, other, strict=True))
        for row, other in zip(a[1], b[1], strict=True)
    ))  # fmt: skip


def _product(a: Node, b: Node) -> Node:
    if a[0] != "matrix":
        return _scaled(b, a)
    if b[0] != "matrix":
        return _scaled(a, b)
    if len(a[1][0]) != len(b[1]):
        raise Unreadable("a product of matrices that do not fit")
    columns = list(zip(*b[1], strict=True))

    def cell(row: tuple[Node, ...], column: tuple[Node, ...]) -> Node:
        return ("add", *(("mul", x, y) for x, y in zip(row, column, strict=True)))

    return ("matrix", tuple(tuple(cell(row, column) for column in columns) for row in a[1]))
