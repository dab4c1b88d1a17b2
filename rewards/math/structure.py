"""Decides whether two parsed answers are the same, from the outside in; the policy is in
docs/math.md.

Every comparison has three results: True, False, and None for "not with what is allowed here". The
outside (lists, tuples, intervals, relations, units, percent) is decided here, the expressions
inside by exact arithmetic, and what that leaves open by ``strong``, which only a worker process
has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from rewards.math import exact, intervals, matrices, units
from rewards.math.limits import MAX_COMPARED, MAX_ITEMS, TooLarge, Undefined, names

Node = tuple[Any, ...]
Verdict = bool | None
Strong = Callable[[str, Node, Node], Verdict]

MIN_DIGITS = 5  # significant ones, for a decimal to stand for a fraction that it is not
INFINITY = ("const", "inf")
_NOT_WORDS = re.compile(r"[^0-9a-z+\-%/:]+")
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_WORD_VALUES: dict[str, Node] = {
    **dict.fromkeys(names("allrealnumbers allreals realnumbers reals"), ("reals",)),
    **dict.fromkeys(
        names("nosolution nosolutions norealsolution norealsolutions emptyset"), ("empty",)
    ),
    **dict.fromkeys(names("infinity +infinity positiveinfinity"), INFINITY),
    **dict.fromkeys(names("-infinity negativeinfinity minusinfinity"), ("neg", INFINITY)),
    "doesnotexist": ("text", "dne"),
}
_ARTICLE = re.compile(r"^\s*(?:an?|the)\s+(?!and\b|or\b)(?=[a-z]{2})")
_AND = re.compile(r",?\s+and\s+|,")
_SCALARS = names("num sym const add mul div pow neg fact fn call sum prod pct degree pm mp based")


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """False if any is, else None if any is, else True."""
    if any(verdict is False for verdict in verdicts):
        return False
    return None if None in verdicts else True


class Comparison:
    """Compares nodes; ``tier`` says which part of it was needed."""

    def __init__(self, strong: Strong | None = None) -> None:
        self.strong = strong
        self.tier = "exact"
        self.compared = 0
        exact.start_counting()

    def equal(self, gold: Node, pred: Node) -> Verdict:
        """Whether ``pred`` answers what ``gold`` does. Raises TooLarge for what exceeds a bound."""
        self.compared += 1
        if self.compared > MAX_COMPARED:
            raise TooLarge(f"more than {MAX_COMPARED} parts to compare")
        gold, pred = self._prepared(gold), self._prepared(pred)
        if gold[0] == "unit" or pred[0] == "unit":
            return self._units(gold, pred)
        if gold[0] == "text" or pred[0] == "text":
            self.tier = "structure"
            return same_words(gold, pred) or self._listed(gold, pred)
        if gold[0] == "rel" or pred[0] == "rel":
            self.tier = "structure"
            return self._relations(gold, pred)
        if gold[0] in _SCALARS and pred[0] in _SCALARS:
            return self._scalars(gold, pred)
        self.tier = "structure"
        return self._containers(gold, pred)

    def _prepared(self, node: Node) -> Node:
        """Matrix arithmetic done, ± written out, degrees as a unit, a chain of equals shortened."""
        node = matrices.simplified(node)
        if node[0] == "rel":
            return shortened(node)
        if node[0] == "degree":
            return ("unit", node[1], "degree")
        if node[0] == "text":
            return _WORD_VALUES.get(words(node[1]), node)
        if node[0] == "unit":
            return _scaled(node)
        if node[0] == "modulo" and node[1][0] == "rel" and node[1][2][0][0] == "sym":
            return ("modulo", node[1][2][-1], node[2])
        if node[0] in _SCALARS and _has(node, ("pm", "mp")):
            return ("list", (_chosen(node, "+"), _chosen(node, "-")), "")
        return node

    def _listed(self, gold: Node, pred: Node) -> Verdict:
        """Whether words joined by commas and "and" are the same list."""
        mine, theirs = _words_listed(gold), _words_listed(pred)
        return min(len(mine), len(theirs)) > 1 and self.unordered(mine, theirs)

    # numbers and expressions

    def _scalars(self, gold: Node, pred: Node) -> Verdict:
        if gold[0] == "based" or pred[0] == "based":
            return gold == pred
        if gold[0] == "pct" or pred[0] == "pct":
            return self._percent(gold, pred)
        if _has(gold, ("inf",)) or _has(pred, ("inf",)):
            return gold == pred and gold in (INFINITY, ("neg", INFINITY))
        return self.leaf(gold, pred)

    def leaf(self, gold: Node, pred: Node) -> Verdict:
        """Two expressions."""
        try:
            verdict = exact.equal(gold, pred)
        except Undefined:
            return False
        except TooLarge:
            verdict = self._too_large(gold)
        if verdict is None:
            verdict = self._strongly("equal", gold, pred)
        if verdict is False:
            return self._rounded(gold, pred)
        return verdict

    def _too_large(self, gold: Node) -> Verdict:
        """A small gold cannot be worth the effort; a large one has no exact verdict."""
        try:
            exact.value(gold)
        except (TooLarge, exact.Irrational):
            return None
        raise

    def _rounded(self, gold: Node, pred: Node) -> Verdict:
        """A decimal of enough digits, rounded rightly, stands for the other, exact side."""
        if (gold[0] == "num" and gold[2] > 0) == (pred[0] == "num" and pred[2] > 0):
            return False
        decimal, other = (gold, pred) if gold[0] == "num" and gold[2] > 0 else (pred, gold)
        unit = Fraction(1, 10 ** decimal[2])
        digits = len(str(abs(decimal[1] / unit).numerator))
        if digits < MIN_DIGITS or exact.variables(other) or _has_decimals(other):
            return False
        try:
            return abs(exact.value(other) - decimal[1]) <= unit / 2
        except (exact.Irrational, TooLarge):
            return self._strongly("rounds", other, decimal) if digits >= MIN_DIGITS + 2 else False

    def _strongly(self, question: str, a: Node, b: Node) -> Verdict:
        if self.strong is None:
            return None
        self.tier = "symbolic"
        return self.strong(question, a, b)

    def _percent(self, gold: Node, pred: Node) -> Verdict:
        """The sign may be left out, or its hundredth be written; below 1 only the latter."""
        if gold[0] == pred[0]:
            return self.leaf(gold[1], pred[1])
        percent, other = (gold, pred) if gold[0] == "pct" else (pred, gold)
        verdict = self.leaf(percent, other)
        if verdict is not True:
            try:
                if abs(exact.value(percent[1])) < 1:
                    return verdict
            except (ArithmeticError, TooLarge):
                return verdict
            return self.leaf(percent[1], other)
        return verdict

    def _units(self, gold: Node, pred: Node) -> Verdict:
        mine = gold[2] if gold[0] == "unit" else ""
        theirs = pred[2] if pred[0] == "unit" else ""
        hedged = [remark for remark in (mine, theirs) if units.is_hedge(remark)]
        if gold[0] == "pct" or pred[0] == "pct":
            mine, theirs = mine or "percent", theirs or "percent"
        if (hedged and words(mine) != words(theirs)) or units.differ(mine, theirs):
            self.tier = "structure"
            return False
        return self.equal(
            _with_unit(gold[1], mine) if mine else gold,
            _with_unit(pred[1], theirs) if theirs else pred,
        )

    # lists, tuples, sets

    def _containers(self, gold: Node, pred: Node) -> Verdict:
        mine, theirs = intervals.of(gold), intervals.of(pred)
        kinds = {gold[0], pred[0]}
        if mine is not None and theirs is not None and kinds != {"tuple"}:
            return self.unordered(mine, theirs)
        if kinds == {"tuple"}:
            return gold[1:3] == pred[1:3] and self.in_order(gold[3], pred[3])
        if kinds <= {"tuple", "list"} and "tuple" in kinds:
            return self._tuple_and_list(gold, pred)
        if kinds <= {"set", "list"} or ("list" in kinds and kinds & _SCALARS):
            return self._lists(gold, pred)
        if "set" in kinds and kinds & _SCALARS:
            return self._lists(gold, pred)
        if kinds == {"matrix"}:
            return self._matrices(gold[1], pred[1])
        if kinds == {"set", "tuple"}:
            return self._one_pair(gold, pred)
        if "ratio" in kinds:
            return self._ratios(gold, pred)
        if gold == pred:
            return True
        if gold[0] == pred[0] and gold[0] in ("union", "inter", "minus", "modulo"):
            return self.in_order(gold[1:], pred[1:])
        return False

    def _one_pair(self, gold: Node, pred: Node) -> Verdict:
        """``{(1, 2)}`` is the pair (1, 2)."""
        whole, pair = (gold, pred) if gold[0] == "set" else (pred, gold)
        return len(whole[1]) == 1 and whole[1][0][0] == "tuple" and self.equal(whole[1][0], pair)

    def _tuple_and_list(self, gold: Node, pred: Node) -> Verdict:
        pair, bare = (gold, pred) if gold[0] == "tuple" else (pred, gold)
        if pair[1:3] != ("(", ")"):
            return False
        values = tuple(_assigned(item)[1] for item in bare[1])
        return self.in_order(pair[3], values)

    def _matrices(self, gold: Any, pred: Any) -> Verdict:
        if len(gold) != len(pred) or len(gold[0]) != len(pred[0]):
            return False
        flat = [[x for row in rows for x in row] for rows in (gold, pred)]
        return self.in_order(*flat)

    def in_order(self, gold: Sequence[Node], pred: Sequence[Node]) -> Verdict:
        if len(gold) != len(pred):
            return False
        verdicts: list[Verdict] = []
        for a, b in zip(gold, pred, strict=True):
            verdicts.append(self.equal(a, b))
            if verdicts[-1] is False:
                return False
        return all_of(verdicts)

    def unordered(self, gold: Sequence[Node], pred: Sequence[Node]) -> Verdict:
        """Whether the items can be paired off."""
        if len(gold) != len(pred):
            return False
        left, open_question = list(pred), False
        for item in gold:
            verdicts: list[Verdict] = []
            for other in left:
                verdicts.append(self.equal(item, other))
                if verdicts[-1]:
                    break
            if verdicts[-1:] == [True]:
                left.pop(len(verdicts) - 1)
            elif None in verdicts:
                open_question = True
            else:
                return False
        return None if open_question else True

    def _distinct(self, items: Sequence[Node]) -> list[Node]:
        """The items of a set, without repetition."""
        kept: list[Node] = []
        for item in items:
            if not any(self.equal(item, other) for other in kept):
                kept.append(item)
        return kept

    def _lists(self, gold: Node, pred: Node) -> Verdict:
        mine, theirs = self._items(gold), self._items(pred)
        if len(mine) > MAX_ITEMS or len(theirs) > MAX_ITEMS:
            raise TooLarge(f"a list of more than {MAX_ITEMS} items")
        if gold[0] == pred[0] == "list" and gold[2] != pred[2] and _inequalities(mine + theirs):
            return False  # "x > 1 and x < 3" is not "x > 1 or x < 3"
        mine_named, theirs_named = [_assigned(x) for x in mine], [_assigned(x) for x in theirs]
        names, other_names = [n for n, _ in mine_named], [n for n, _ in theirs_named]
        values, other_values = [v for _, v in mine_named], [v for _, v in theirs_named]
        if "set" in (gold[0], pred[0]):
            return self.unordered(self._distinct(values), self._distinct(other_values))
        if _tells_apart(names) and _tells_apart(other_names):
            return self._by_name(dict(mine_named), dict(theirs_named))
        if _tells_apart(names) or _tells_apart(other_names):
            return self.in_order(values, other_values)
        if any(names) and any(other_names) and _bases(names) != _bases(other_names):
            return False
        return self.unordered(values, other_values)

    def _by_name(self, gold: dict[Any, Node], pred: dict[Any, Node]) -> Verdict:
        if gold.keys() != pred.keys():
            return False
        return all_of([self.equal(gold[name], pred[name]) for name in gold])

    def _items(self, node: Node) -> list[Node]:
        """The items of a list or set with ± written out."""
        if node[0] not in ("list", "set"):
            return [node]
        items: list[Node] = []
        for item in node[1]:
            name, value = _assigned(item)
            made = self._prepared(value)
            if made[0] == "list":
                items += [("rel", ("=",), (name, x)) if name else x for x in made[1]]
            else:
                items.append(item)
        return items

    def _ratios(self, gold: Node, pred: Node) -> Verdict:
        """Part by part, or scaled; a ratio of two may be a fraction. A time may not."""
        if gold[0] == pred[0]:
            verdict = self.in_order(gold[1], pred[1])
            if verdict is not False or _is_time(gold) or _is_time(pred):
                return verdict
            return self.in_order(*([("div", part, side[1][-1]) for part in side[1][:-1]]
                                   for side in (gold, pred)))  # fmt: skip
        ratio, other = (gold, pred) if gold[0] == "ratio" else (pred, gold)
        if len(ratio[1]) != 2 or other[0] not in ("num", "div") or _is_time(ratio):
            return False
        return self.leaf(("div", *ratio[1]), other)

    # relations

    def _relations(self, gold: Node, pred: Node) -> Verdict:
        from rewards.math import relations

        return relations.equal(self, gold, pred)


def shortened(node: Node) -> Node:
    """``x = 2 + 3 = 5`` says x = 5; what follows "≈" is a remark, unless it is all there is."""
    operators, items = node[1], node[2]
    if "approx" in operators:
        cut = operators.index("approx")
        if cut == 0 and len(operators) == 1 and items[0][0] in ("sym", "call", "tuple"):
            return ("rel", ("=",), items)
        if cut == 0:
            return tuple(items[0])
        operators, items = operators[:cut], items[: cut + 1]
    if len(operators) > 1 and set(operators) == {"="} and items[0][0] in ("sym", "call", "tuple"):
        return ("rel", ("=",), (items[0], items[-1]))
    return ("rel", operators, items)


def words(text: str) -> str:
    """Text with nothing but its letters, digits and signs, in lower case."""
    spelled = _NOT_WORDS.sub("", _ARTICLE.sub("", text.lower()))
    return str(_NUMBERS.index(spelled)) if spelled in _NUMBERS else spelled


def same_words(gold: Node, pred: Node) -> bool:
    """Whether two answers are the same words; case matters only for a single letter as such."""
    mine, theirs = _spelled(gold), _spelled(pred)
    return mine is not None and mine == theirs


def _spelled(node: Node) -> str | None:
    if node[0] == "text":
        return words(node[1]) or None
    if node[0] == "sym":
        return words(node[1])
    if node[0] == "tuple" and len(node[3]) == 1:
        return _spelled(node[3][0])
    if node[0] == "num" and node[1].denominator == 1:
        return str(node[1])
    if node[0] in ("mul",) and all(part[0] in ("sym", "const") for part in node[1:]):
        return "".join(words(part[1]) for part in node[1:])
    if node[0] == "const":
        return str(node[1])
    return None


def _words_listed(node: Node) -> list[Node]:
    if node[0] == "list" and node[2] != "or":
        return list(node[1])
    if node[0] != "text":
        return []
    return [("text", part) for part in _AND.split(node[1]) if words(part)]


def _scaled(node: Node) -> Node:
    """``7 million people`` as 7,000,000 people."""
    power, rest = units.scale(node[2])
    if not power:
        return node
    value = ("mul", node[1], ("num", Fraction(10**power), 0))
    return ("unit", value, rest) if rest.strip() else value


def _with_unit(node: Node, remark: str) -> Node:
    if units.unit_of(remark) == (("percent", 1),):
        return ("pct", node)
    return node


def _assigned(item: Node) -> tuple[Node | None, Node]:
    """(name, value) of ``x = 5``; (None, item) of anything else."""
    if item[0] == "rel":
        item = shortened(item)
    if item[0] == "rel" and item[1] == ("=",):
        left, right = item[2]
        if left[0] in ("sym", "call"):
            return left, right
    return None, item


def _base(name: Node) -> str:
    return str(name[1]).split("_")[0]


def _bases(names: Sequence[Node | None]) -> set[str]:
    return {_base(name) for name in names if name}


def _tells_apart(names: Sequence[Node | None]) -> bool:
    """Whether items have names of their own: k = 45, n = 2; but not x_1 = 2, x_2 = 3."""
    return None not in names and len(names) > 1 and len(_bases(names)) == len(names)


def _inequalities(items: Sequence[Node]) -> bool:
    return any(item[0] == "rel" and item[1] != ("=",) for item in items)


def _is_time(ratio: Node) -> bool:
    first, second = ratio[1][0], ratio[1][1]
    if first[0] != "num" or second[0] != "num":
        return False
    return bool(second[1] == 0 or (10 <= second[1] < 60 and first[1] < 24))


def _has(node: Any, kinds: tuple[str, ...]) -> bool:
    if not isinstance(node, tuple):
        return isinstance(node, str) and node in kinds
    return any(_has(part, kinds) for part in node if isinstance(part, tuple)) or (
        bool(node) and (node[0] in kinds or (node[0] == "const" and node[1] in kinds))
    )


def _has_decimals(node: Any) -> bool:
    if not isinstance(node, tuple):
        return False
    if node and node[0] == "num":
        return bool(node[2] > 0)
    return any(_has_decimals(part) for part in node)


def _chosen(node: Any, sign: str) -> Any:
    """A copy with ± taken as ``sign`` and ∓ as the other one."""
    if not isinstance(node, tuple):
        return node
    if node[0] in ("pm", "mp"):
        inside = _chosen(node[1], sign)
        return inside if (node[0] == "pm") == (sign == "+") else ("neg", inside)
    return tuple(_chosen(part, sign) for part in node)
