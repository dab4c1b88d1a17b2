"""Decides whether two relations, or a relation and a value or set, are the same answer.

``x = 5`` answers what ``5`` does, and the other way round; ``2x + z = 1`` does not answer ``1``.
Two equations are the same when their difference of sides is proportional, two inequalities when
it is proportional with the right sign. A gold in solved form asks for a solved form: the equation
of the question, written back, is no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rewards.math import exact, intervals
from rewards.math.limits import Undefined

if TYPE_CHECKING:
    from rewards.math.structure import Comparison, Verdict

Node = tuple[Any, ...]
_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le", "=": "=", "ne": "ne"}


def equal(comparison: Comparison, gold: Node, pred: Node) -> Verdict:
    """The verdict; at least one of the two is a relation."""
    if gold == pred:
        return True
    gold, pred = _set_of(gold), _set_of(pred)
    if gold[0] != "rel" and pred[0] != "rel":
        return comparison.equal(gold, pred)
    if gold[0] == "rel" and pred[0] == "rel":
        return _both(comparison, gold, pred)
    relation, other = (gold, pred) if gold[0] == "rel" else (pred, gold)
    if (value := assigned_value(relation)) is not None:
        return comparison.equal(*((value, other) if relation is gold else (other, value)))
    if relation is pred and (value := _true_chain(relation)) is not None:
        return comparison.equal(other, value)
    sets, others = intervals.of_relation(relation), intervals.of(other)
    if sets is None or others is None:
        return False
    return comparison.unordered(sets, others)


def assigned_value(relation: Node) -> Node | None:
    """The right side of ``x = ...``, ``f(x) = ...``, ``(p, q) = ...``, ``a : b = ...``."""
    if relation[1] != ("=",):
        return None
    left, right = relation[2]
    if _is_name(left) and not exact.variables(left) & exact.variables(right):
        return tuple(right)
    if left[0] == "call" or (left[0] == "div" and _is_name(left)):
        return tuple(right)
    if _is_name(right) and not exact.variables(left):
        return tuple(left)
    return None


def _is_name(node: Node) -> bool:
    if node[0] in ("sym", "call", "text"):
        return True
    if node[0] == "div":  # dy/dx
        return all(part[0] == "mul" and part[1] == ("sym", "d") for part in node[1:])
    if node[0] == "mul":  # AB = 4: a segment
        return all(part[0] == "sym" and part[1].isupper() for part in node[1:])
    if node[:2] == ("fn", "abs"):
        return node[2][0][0] == "mul" and _is_name(node[2][0])
    if node[0] in ("union", "inter"):
        return all(part[0] == "sym" and part[1].isupper() for part in node[1:])
    items = node[3] if node[0] == "tuple" else node[1] if node[0] == "ratio" else ()
    return bool(items) and all(item[0] == "sym" for item in items)


def _set_of(node: Node) -> Node:
    """``x in S`` is S."""
    if node[0] == "rel" and node[1] == ("in",) and node[2][0][0] in ("sym", "call", "tuple"):
        return tuple(node[2][1])
    return node


def _true_chain(relation: Node) -> Node | None:
    """5 of ``2 + 3 = 5``: a calculation written out, when it is right."""
    if set(relation[1]) != {"="}:
        return None
    try:
        values = {exact.value(item) for item in relation[2]}
    except (ArithmeticError, ValueError):
        return None
    return tuple(relation[2][-1]) if len(values) == 1 else None


def _both(comparison: Comparison, gold: Node, pred: Node) -> Verdict:
    mine, theirs = assigned_value(gold), assigned_value(pred)
    if mine is not None and theirs is not None:
        names = _name_of(gold), _name_of(pred)
        if names[0] == names[1]:
            return comparison.equal(mine, theirs)
        if not (exact.variables(mine) and exact.variables(theirs)):
            return False
    elif mine is not None and not exact.variables(mine) and mine[0] != "rel":
        return False  # gold is solved, pred is not
    if len(gold[1]) == len(pred[1]) == 1:
        return _single(comparison, gold, pred)
    sets, others = intervals.of_relation(gold), intervals.of_relation(pred)
    if sets is not None and others is not None and _middle(gold) == _middle(pred):
        return comparison.unordered(sets, others)
    if gold[1] == pred[1]:
        return comparison.in_order(gold[2], pred[2])
    if tuple(_FLIPPED.get(op) for op in reversed(gold[1])) == pred[1]:
        return comparison.in_order(tuple(reversed(gold[2])), pred[2])
    return False


def _middle(relation: Node) -> list[Node]:
    return sorted(exact.variables(relation))


def _name_of(relation: Node) -> Node:
    left, right = relation[2]
    return tuple(left) if _is_name(left) or left[0] == "call" else tuple(right)


def _single(comparison: Comparison, gold: Node, pred: Node) -> Verdict:
    """Two relations of two sides each."""
    operator, other = gold[1][0], pred[1][0]
    if operator not in _FLIPPED or other not in (operator, _FLIPPED[operator]):
        return False
    if exact.variables(gold) != exact.variables(pred):
        return False
    if _is_solved(gold) and not _is_solved(pred):
        return False
    difference, pred_difference = _difference(gold), _difference(pred)
    try:
        factor: Any = exact.proportional(difference, pred_difference)
    except Undefined:
        return False
    if factor is None:
        factor = _probed(comparison, difference, pred_difference)
    if factor is None:
        return None
    if operator in ("=", "ne"):
        return bool(factor != 0)
    return bool(factor > 0 if operator == other else factor < 0)


def _probed(comparison: Comparison, a: Node, b: Node) -> int | None:
    """1, -1 or 0 as ``a`` is a positive, a negative or no multiple of ``b``."""
    for question, factor in (("multiple", 1), ("negative", -1)):
        verdict = comparison._strongly(question, a, b)
        if verdict is None:
            return None
        if verdict:
            return factor
    return 0


def _difference(relation: Node) -> Node:
    left, right = relation[2]
    return ("add", left, ("neg", right))


def _is_solved(relation: Node) -> bool:
    """A variable, or minus one, on one side and a constant on the other."""
    left, right = relation[2]
    for side, other in ((left, right), (right, left)):
        bare = side[1] if side[0] == "neg" else side
        if bare[0] in ("sym", "call") and not exact.variables(other):
            return True
    return False
