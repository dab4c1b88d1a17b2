"""Filters over a whole data set, applied when it is published, in the order of the input.

A filter is told each row that is still kept, in turn, and says why it goes, or "". It may remember
what it saw. In settings a filter is a name or a table of a name and its arguments, as rules are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_gen.errors import UsageError, did_you_mean

Row = Mapping[str, Any]
Filter = Callable[[Row], str]
FILTERS: dict[str, Callable[..., Filter]] = {}


def register(name: str) -> Callable[[Callable[..., Filter]], Callable[..., Filter]]:
    """Name a function that makes a filter; its parameters are the filter's settings."""

    def add(factory: Callable[..., Filter]) -> Callable[..., Filter]:
        FILTERS[name] = factory
        return factory

    return add


@register("duplicates")
def duplicates() -> Filter:
    """Drops a row whose content, whatever made it, was there before."""
    seen: set[bytes] = set()

    def judge(row: Row) -> str:
        key = bytes.fromhex(row["content_hash"])
        if key in seen:
            return "duplicate"
        seen.add(key)
        return ""

    return judge


@register("contamination")
def contamination(against: Mapping[str, Any]) -> Filter:
    """Drops a row that holds an item of an evaluation set; ``against`` names files, or texts.

    What counts as holding one is said in ``envs.contamination``.
    """
    from envs.contamination import read_index, row_text

    index = read_index(against)
    columns = ("messages", "prompt", "chosen", "rejected", "text", "answer")

    def judge(row: Row) -> str:
        match = index.find(row_text({name: row[name] for name in columns if name in row}))
        return match.reason if match else ""

    return judge


def read_filters(given: Any) -> list[Filter]:
    """Fresh filters, in order. Raises UsageError for an unknown name or setting."""
    return [_read(one) for one in as_list(given)]


def as_list(given: Any) -> list[Any]:
    """One filter, or several, as settings have them."""
    return [given] if isinstance(given, str | Mapping) or callable(given) else list(given)


def first_reason(filters: Sequence[Filter], row: Row) -> str:
    """Of the first filter that drops the row, or ""."""
    for one in filters:
        reason = one(row)
        if reason:
            return reason
    return ""


def _read(given: Any) -> Filter:
    if callable(given):
        return given  # type: ignore[no-any-return]
    table = {"name": given} if isinstance(given, str) else dict(given)
    name = table.pop("name", "")
    if name not in FILTERS:
        raise UsageError(f"there is no filter {name!r}.{did_you_mean(name, FILTERS)}")
    try:
        inspect.signature(FILTERS[name]).bind(**table)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(FILTERS[name]).parameters) or "none"
        raise UsageError(f"filter {name!r}: {error}. Accepted: {accepted}") from None
    return FILTERS[name](**table)
