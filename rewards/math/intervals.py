"""Decides which answers are sets of reals made of intervals, and writes them all in one way."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from rewards.math import exact
from rewards.math.limits import MAX_ITEMS, TooLarge

Node = tuple[Any, ...]
INFINITY = ("const", "inf")
MINUS_INFINITY = ("neg", INFINITY)


def of(node: Node) -> list[Node] | None:
    """Intervals (nodes "tuple") and finite sets that make up the set; None if it is no such set."""
    parts = _parts(node)
    if parts is not None and len(parts) > MAX_ITEMS:
        raise TooLarge(f"a union of more than {MAX_ITEMS} sets")
    return parts if parts is None else _merged(parts)


def _parts(node: Node) -> list[Node] | None:
    kind = node[0]
    if kind == "reals":
        return [("tuple", "(", ")", (MINUS_INFINITY, INFINITY))]
    if kind == "tuple" and len(node[3]) == 2:
        return [node]
    if kind == "union":
        left, right = _parts(node[1]), _parts(node[2])
        left = [node[1]] if left is None and node[1][0] == "set" else left
        right = [node[2]] if right is None and node[2][0] == "set" else right
        return None if left is None or right is None else left + right
    if kind == "minus" and node[2][0] == "set":
        return _without(of(node[1]), node[2][1])
    if kind == "rel":
        return of_relation(node)
    if kind == "list" and node[2] == "or":
        parts = [_parts(item) for item in node[1]]
        if all(item[0] == "rel" for item in node[1]) and None not in parts:
            return [one for part in parts if part for one in part]
    return None


def of_relation(node: Node) -> list[Node] | None:
    """The solutions of a < x <= b, x > a, x != a and the like, for anything in the place of x."""
    operators, items = node[1], node[2]
    if operators == ("in",):
        return of(items[1])
    if operators == ("ne",):
        return _without([("tuple", "(", ")", (MINUS_INFINITY, INFINITY))], (_bound(items),))
    if not set(operators) <= {"<", ">", "le", "ge"}:
        return None
    if set(operators) & {">", "ge"}:
        if set(operators) & {"<", "le"}:
            return None
        operators = tuple({">": "<", "ge": "le"}[op] for op in reversed(operators))
        items = tuple(reversed(items))
    if len(items) == 2:
        if _is_bound(items[0]) and not _is_bound(items[1]):
            items, operators = (*items, INFINITY), (*operators, "<")
        elif _is_bound(items[1]) and not _is_bound(items[0]):
            items, operators = (MINUS_INFINITY, *items), ("<", *operators)
    if len(items) != 3 or not _is_bound(items[0]) or not _is_bound(items[2]) or _is_bound(items[1]):
        return None
    open_ = "(" if operators[0] == "<" else "["
    close = ")" if operators[1] == "<" else "]"
    interval = ("tuple", open_, close, (items[0], items[2]))
    middle = items[1]
    if middle[:2] == ("fn", "abs") and middle[2][0][0] == "sym":
        return _of_absolute(interval)
    return [interval] if middle[0] in ("sym", "call") else None


def _of_absolute(interval: Node) -> list[Node] | None:
    """The x with |x| in an interval."""
    open_, close, (low, high) = interval[1:]
    try:
        negative = low == MINUS_INFINITY or exact.value(low) < 0
    except (ArithmeticError, TooLarge):
        return None
    mirrored = ("tuple", {")": "(", "]": "["}[close], {"(": ")", "[": "]"}[open_],
                (_minus(high), _minus(low)))  # fmt: skip
    if negative:
        return [("tuple", mirrored[1], close, (_minus(high), high))]
    return [mirrored, interval]


def _minus(node: Node) -> Node:
    if node[0] == "num":
        return ("num", -node[1], node[2])
    return tuple(node[1]) if node[0] == "neg" else ("neg", node)


def _is_bound(node: Node) -> bool:
    return not exact.variables(node) and node[0] not in ("call", "tuple", "text")


def _bound(items: tuple[Node, ...]) -> Node:
    return items[1] if _is_bound(items[1]) else items[0]


def _key(node: Node) -> Fraction | None:
    try:
        return exact.value(node)
    except (ArithmeticError, TooLarge):
        return None


def _merged(parts: list[Node]) -> list[Node]:
    """Neighbours that touch become one: (0, 1] and (1, 2)."""
    if any(part[0] != "tuple" for part in parts):
        return parts
    merged = list(parts)
    for a in parts:
        for b in parts:
            touches = a[3][1] == b[3][0] and not (a[2] == ")" and b[1] == "(")
            if a is not b and touches and a in merged and b in merged:
                merged.remove(a)
                merged.remove(b)
                merged.append(("tuple", a[1], b[2], (a[3][0], b[3][1])))
                return _merged(merged)
    return merged


def _without(parts: list[Node] | None, points: tuple[Node, ...]) -> list[Node] | None:
    """Intervals with single points, in increasing order, taken out."""
    if parts is None or len(parts) != 1 or any(_key(point) is None for point in points):
        return None
    ((_, open_, close, (low, high)),) = parts
    bounds = sorted(points, key=lambda point: exact.value(point))
    edges = [low, *bounds, high]
    result = []
    for i, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        first, last = i == 0, i == len(edges) - 2
        result.append(("tuple", open_ if first else "(", close if last else ")", (a, b)))
    return result
