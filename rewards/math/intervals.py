"""Decides which answers are sets of reals made of intervals, and writes them all in one way."""

from __future__ import annotations

import math
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
    if kind == "inter":
        left, right = of(node[1]), of(node[2])
        return None if left is None or right is None else _common(left, right)
    if kind == "list":
        return _conditions(node)
    return None


def _conditions(node: Node) -> list[Node] | None:
    """The numbers for which any ("or") or all ("and") of some inequalities hold."""
    if any(item[0] != "rel" for item in node[1]) or all(item[1] == ("=",) for item in node[1]):
        return None
    parts = [_parts(item) or _solution(item) for item in node[1]]
    if None in parts:
        return None
    if node[2] == "or":
        return [one for part in parts if part for one in part]
    if node[2] != "and" or len(exact.variables(node)) != 1:
        return None
    common = parts[0]
    for part in parts[1:]:
        common = common and part and _common(common, part)
    return common


def _solution(relation: Node) -> list[Node] | None:
    """The number in ``x = 5``."""
    left, right = relation[2][0], relation[2][-1]
    solved = relation[1] == ("=",) and left[0] == "sym" and _is_bound(right)
    return [("set", (right,))] if solved else None


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


def _key(node: Node) -> Any:
    """A bound as a number, None for one that is not rational."""
    if node in (INFINITY, MINUS_INFINITY):
        return math.inf if node == INFINITY else -math.inf
    try:
        return exact.value(node)
    except (ArithmeticError, TooLarge):
        return None


def _merged(parts: list[Node]) -> list[Node]:
    """Parts that overlap or touch become one: (0, 1] and (1, 2); in increasing order."""
    ordered = [one for part in parts for one in _points(part)]
    if any(_range(one) is None for one in ordered):
        return _touching(parts)
    ordered.sort(key=lambda one: (_range(one) or ())[:2])
    merged: list[Node] = []
    for one in ordered:
        if merged and not _apart(merged[-1], one):
            last = merged.pop()
            end = max(last, one, key=lambda part: (_range(part) or ())[2:])
            one = ("tuple", last[1], end[2], (last[3][0], end[3][1]))
        merged.append(one)
    return merged


def _points(part: Node) -> list[Node]:
    """A finite set as intervals of one point."""
    return [("tuple", "[", "]", (x, x)) for x in part[1]] if part[0] == "set" else [part]


def _range(part: Node) -> tuple[Any, bool, Any, bool] | None:
    """(low, whether open, high, whether closed); None without rational, ordered bounds."""
    low, high = (_key(bound) for bound in part[3])
    if low is None or high is None or low > high:
        return None
    return low, part[1] == "(", high, part[2] == "]"


def _apart(part: Node, later: Node) -> bool:
    """Whether there is a number between two intervals in increasing order."""
    end, start = part[3][1], later[3][0]
    gap = _key(start) - _key(end)  # type: ignore[operator]  # both have a _range
    return gap > 0 or (gap == 0 and part[2] == ")" and later[1] == "(")


def _touching(parts: list[Node]) -> list[Node]:
    """Neighbours with the same bound become one, where bounds cannot be put in order here."""
    if any(part[0] != "tuple" for part in parts):
        return parts
    for a in parts:
        for b in parts:
            if a is not b and a[3][1] == b[3][0] and not (a[2] == ")" and b[1] == "("):
                rest = [part for part in parts if part is not a and part is not b]
                return _touching([*rest, ("tuple", a[1], b[2], (a[3][0], b[3][1]))])
    return parts


def _common(left: list[Node], right: list[Node]) -> list[Node] | None:
    """The intersection; None when bounds cannot be put in order."""
    found = []
    for a in left:
        for b in right:
            if _range(a) is None or _range(b) is None:
                return None
            start = max(a, b, key=lambda part: (_range(part) or ())[:2])
            end = min(a, b, key=lambda part: (_range(part) or ())[2:])
            both = ("tuple", start[1], end[2], (start[3][0], end[3][1]))
            if _range(both) and (both[1:3] == ("[", "]") or _key(both[3][0]) != _key(both[3][1])):
                found.append(both)
    return found or None


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
