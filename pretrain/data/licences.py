"""Decides which code may be trained on, by its licence: an allow-list of SPDX names.

Prose hardly ever names a licence, so only documents of the domains that hold code are judged
(``metadata.domain``, as for fill-in-the-middle), and those without a domain that name a licence
as code does: in ``metadata.license`` or by SPDX. A file's licence is, in this order:
``metadata.license`` (what the repository says), an ``SPDX-License-Identifier`` in its first lines,
or the wording of a known licence there. In an SPDX expression every side of AND has to be allowed
and one side of OR; an exception (WITH) only permits more. Wordings are looked for without case,
punctuation and line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from datatrove.data import Document

PERMISSIVE = (
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT"),
    *("MIT-0", "PostgreSQL", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
)
# The more specific wording first: every BSD-3-Clause text holds that of BSD-2-Clause.
_WORDINGS = (
    ("AGPL-3.0", "gnu affero general public license"),
    ("LGPL-2.1", "gnu lesser general public license"),
    ("GPL-2.0", "gnu general public license"),
    ("Apache-2.0", "licensed under the apache license version 2 0"),
    ("Apache-2.0", "apache license version 2 0 january 2004"),
    ("MPL-2.0", "mozilla public license v 2 0"),
    ("MPL-2.0", "mozilla public license version 2 0"),
    ("BSL-1.0", "boost software license version 1 0"),
    ("MIT", "permission is hereby granted free of charge to any person obtaining a copy"),
    ("ISC", "permission to use copy modify and or distribute this software for any purpose"),
    ("BSD-3-Clause", "may be used to endorse or promote products derived from this software"),
    ("BSD-2-Clause", "redistribution and use in source and binary forms with or without"),
    ("Unlicense", "this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", "cc0 1 0 universal"),
    ("proprietary", "all rights reserved"),
)
_HEADER = 4000  # characters
_SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+() -]+)")
_TOKEN = re.compile(r"[()]|[\w.+-]+")
_NO_WORD = re.compile(r"\W+")


class Licence:
    """Drops code whose licence is not in ``allow``, and, unless ``keep_unknown``, code without.

    ``domains``: which documents are code; those of other domains pass, and those without a domain
    that have neither ``metadata.license`` nor an SPDX line. ``["*"]`` judges every document.
    """

    name = "licence"

    def __init__(
        self,
        allow: Sequence[str] = PERMISSIVE,
        *,
        keep_unknown: bool = False,
        domains: Sequence[str] = ("code",),
    ):
        if not allow:
            raise UsageError("allow is empty: every document would be dropped")
        if isinstance(domains, str) or not domains:
            raise UsageError('domains is a list of names, such as ["code"]')
        self._domains = frozenset(domains)
        self._allow = {one.lower() for one in allow}
        self._keep_unknown = keep_unknown

    def check(self, document: Document) -> str | None:
        """``licence_not_allowed`` or ``licence_unknown``; the licence goes into the metadata."""
        if not self._judges(document):
            return None
        licence = document.metadata.get("license") or licence_of(document.text)
        if not licence:
            return None if self._keep_unknown else "licence_unknown"
        document.metadata["license"] = licence
        expressions = [licence] if isinstance(licence, str) else licence
        allowed = all(self._allows(expression) for expression in expressions)
        return None if allowed else "licence_not_allowed"

    def _judges(self, document: Document) -> bool:
        domain = document.metadata.get("domain")
        if domain or "*" in self._domains:
            return not self._domains.isdisjoint(("*", domain))
        return bool(document.metadata.get("license") or _SPDX.search(document.text[:_HEADER]))

    def _allows(self, expression: str) -> bool:
        tokens = _TOKEN.findall(expression)
        allowed = _either(tokens, self._allow)
        return allowed and not tokens  # what is left was no expression


def licence_of(text: str) -> str | None:
    """The SPDX expression or the name of the licence in the first lines, or None."""
    header = text[:_HEADER]
    if found := _SPDX.search(header):
        return found.group(1).strip()
    plain = _NO_WORD.sub(" ", header.lower())
    return next((name for name, wording in _WORDINGS if wording in plain), None)


def _either(tokens: list[str], allow: set[str]) -> bool:
    allowed = _both(tokens, allow)
    while tokens and tokens[0].upper() == "OR":
        tokens.pop(0)
        allowed = _both(tokens, allow) or allowed
    return allowed


def _both(tokens: list[str], allow: set[str]) -> bool:
    allowed = _one(tokens, allow)
    while tokens and tokens[0].upper() == "AND":
        tokens.pop(0)
        allowed = _one(tokens, allow) and allowed
    return allowed


def _one(tokens: list[str], allow: set[str]) -> bool:
    if not tokens:
        return False
    first = tokens.pop(0)
    if first == "(":
        allowed = _either(tokens, allow)
        return bool(tokens) and tokens.pop(0) == ")" and allowed
    if tokens[:1] and tokens[0].upper() == "WITH":
        del tokens[:2]
    return first.lower() in allow
