"""Decides which text the bytes of a page are.

Pages lie about their encoding. Bytes that are valid UTF-8 are UTF-8; others are what is declared,
when they are valid in that; otherwise what resiliparse detects; and what even that can't decode is
replaced by U+FFFD. What was done is said, to be counted.
"""

from __future__ import annotations

import codecs

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

DECLARED, UTF8, DETECTED, REPLACED = "declared", "utf8", "detected", "replaced"
_VALID_AS_UTF8 = {"utf-16-le", "utf-16-be", "iso-2022-jp"}


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """(text, how): how is one of DECLARED, UTF8, DETECTED, REPLACED.

    ``declared`` is the charset of the HTTP header; without one, the page's own ``<meta>`` counts.
    """
    if data.startswith(codecs.BOM_UTF8):
        data, declared = data[3:], "utf-8"
    name = _known(declared) or _meta_charset(data)
    # UTF-8 is hardly ever valid by chance, so it comes first, except before encodings whose bytes
    # are all valid UTF-8 too.
    order = (name, "utf-8") if name in _VALID_AS_UTF8 else ("utf-8", name)
    for encoding in filter(None, order):
        text = _strict(data, encoding)
        if text is not None:
            believed = encoding == name or (name is not None and text.isascii())
            return text, DECLARED if believed else UTF8
    detected = detect_encoding(data) or "cp1252"
    text = _strict(data, detected)
    if text is not None:
        return text, DETECTED
    return data.decode("utf-8", errors="replace"), REPLACED


def _known(name: str | None) -> str | None:
    if not name:
        return None
    html5: str | None = map_encoding_to_html5(name, fallback_utf8=False)
    return html5


def _meta_charset(data: bytes) -> str | None:
    head = data[:2048].lower()
    if b"charset" not in head:
        return None
    found: str | None = detect_encoding(head, from_html_meta=True)
    return _known(found)


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None
