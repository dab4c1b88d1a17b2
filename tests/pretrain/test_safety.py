"""Personal data, word lists and licences: what is planted is found, look-alikes are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document

from pretrain.data.licences import Licence, licence_of
from pretrain.data.nsfw import WORDS, Nsfw
from pretrain.data.pii import Pii
from pretrain.errors import UsageError

PLANTED = [
    ("en", "Write to jane.doe+news@mail.example.com.", "Write to [EMAIL]."),
    ("en", "Call (212) 555-0123 or +44 20 7946 0958 now", "Call [PHONE] or [PHONE] now"),
    ("en", "call me at 415-555-2671.", "call me at [PHONE]."),
    ("de", "Tel.: 030 / 901820 oder 0171-2345678", "Tel.: [PHONE] oder [PHONE]"),
    ("de", "Telefon +49 (0)30 901820, Fax 030 901821", "Telefon [PHONE], Fax [PHONE]"),
    ("es", "Teléfono: 912 345 678 o móvil 612 345 678.", "Teléfono: [PHONE] o móvil [PHONE]."),
    ("de", "IBAN DE89 3704 0044 0532 0130 00 bitte", "IBAN [IBAN] bitte"),
    ("es", "cuenta ES9121000418450200051332.", "cuenta [IBAN]."),
    ("en", "GB29NWBK60161331926819", "[IBAN]"),
    ("de", "IBAN: de89 3704 0044 0532 0130 00 und mehr", "IBAN: [IBAN] und mehr"),
    ("en", "fr12 is no account, gb29nwbk60161331926819 is", "fr12 is no account, [IBAN] is"),
    ("en", "DE89 3704 0044 0532 0130 00 or GB29 NWBK 6016 1331 9268 19", "[IBAN] or [IBAN]"),
    ("en", "fr12 is no GB29NWBK60161331926819", "fr12 is no [IBAN]"),
    ("en", "card 4111 1111 1111 1111, exp 12/27", "card [CARD], exp 12/27"),
    ("en", "5500-0055-5555-5559 and 378282246310005", "[CARD] and [CARD]"),
    ("en", "from 93.184.216.34 at noon", "from [IP] at noon"),
    (
        "en",
        "my server 8.8.8.8, host 1.1.1.1; server 93.184.216.34",
        "my server [IP], host [IP]; server [IP]",
    ),
    ("de", "Die IP-Adresse ist 8.8.4.4", "Die IP-Adresse ist [IP]"),
    ("es", "la dirección IP 8.8.8.8", "la dirección IP [IP]"),
    ("en", "host 2606:2800:220:1:248:1893:25c8:1946", "host [IP]"),
]

LOOK_ALIKES = [
    ("en", "version 1.2.3.4, v10.20.30.40 and release 8.8.8.8"),
    ("de", "Softwareversion 4.35.1.2, Firmwareversion: 2.40.1.7, Kernelversion 5.40.0.3"),
    # Letters that count as I and K where case does not.
    ("en", "\u0130T60 X054 2811 1010 0000 0123 456, S\u013012ABCDEFGHIJKLMNOP"),
    ("en", "D\u212a50 0040 0440 1162 43 and DE12 3704 0044 0532 0130 \u017f0"),
    ("en", "localhost is 127.0.0.1, the router 192.168.0.1, an example 192.0.2.7"),
    ("en", "ISBN 978-3-16-148410-0, ISBN-10: 0-306-40615-2, 0-306-40615-2"),
    ("de", "am 01.02.2024, 2024-01-15 und 15/01/2024 12:30, von 1999-2004"),
    ("en", "11.5.1.1. Samba, see 6.3.4.5; a[::2] = [0, -1], 1::2, ffff:ffff:ffff:ffff::"),
    ("en", "@mention, foo@bar, icon@2x.png, a @ b.c, user@localhost"),
    ("en", "card 4111 1111 1111 1112, order 1234567890123456, 3.14159265358979"),
    ("en", "see 8.8.8.8; a de facto rule, de12 of 11 the words in the text go on and on"),
    ("de", "DE89 3704 0044 0532 0130 01 hat eine falsche Prüfziffer"),
    ("en", "std::vector::push_back 10:30:45 00:1a:2b:3c:4d:5e ::1"),
    ("en", "It had 1234567 of 20000000 rows, 10,000,000 bytes, 2.6.32-5-686 and RFC 2822"),
    ("es", "ley 30/1992 de 26 de noviembre, artículo 12.345.678, 1.000.000 de euros"),
    ("en", "pi = 3.1415926535, GMT 20261126143000, id 550e8400-e29b-41d4-a716-446655440000"),
]


@pytest.mark.parametrize(("language", "text", "clean"), PLANTED)
def test_planted_personal_data_is_replaced(language: str, text: str, clean: str) -> None:
    for known in ({"language": language}, {}):
        document = Document(text, "a", metadata=known)
        assert Pii().check(document) is None
        assert document.text == clean
        assert sum(document.metadata["pii"].values()) == clean.count("[")


@pytest.mark.parametrize(("language", "text"), LOOK_ALIKES)
def test_look_alikes_stay(language: str, text: str) -> None:
    for known in ({"language": language}, {}):
        document = Document(text, "a", metadata=dict(known))
        Pii().check(document)
        assert (document.text, document.metadata) == (text, known)


def test_what_is_replaced_can_be_chosen() -> None:
    document = Document("a@b.org, +44 20 7946 0958, b@c.org", "a")
    Pii(["email"]).check(document)
    assert document.text == "[EMAIL], +44 20 7946 0958, [EMAIL]"
    assert document.metadata["pii"] == {"email": 2}
    with pytest.raises(UsageError, match="no such kind of personal data.*name"):
        Pii(["name"])


def nsfw(text: str, **settings: float) -> str | None:
    return Nsfw(**settings).check(Document(text, "a"))  # type: ignore[arg-type]


@pytest.mark.parametrize("language", WORDS)
def test_pages_full_of_listed_words_go(language: str) -> None:
    listed = WORDS[language].split()
    assert nsfw(" ".join(["word"] * 200 + listed[:3])) == "nsfw"
    assert nsfw(" ".join(["word"] * 200 + listed[:2])) is None  # too few
    assert nsfw(" ".join(["word"] * 300 + listed[:3])) is None  # a small share
    others = [one for one in WORDS if one != language]
    other = Nsfw(others)
    shared = {word for one in others for word in WORDS[one].split()}
    seldom = [word for word in listed if word not in shared]
    assert other.check(Document(" ".join(seldom), "a")) is None


def test_medicine_law_and_schools_stay() -> None:
    text = """Breast cancer screening. Sexual health at school: penis, vagina, condoms. The court
    convicted him of rape. Brustkrebs, Geschlechtsverkehr, Sexualkunde. Educación sexual, cáncer de
    mama, delitos sexuales, pornografía infantil. Corridas de toros."""
    assert nsfw(text, fewest=1, share=0) is None
    for settings in ({"fewest": 0}, {"share": 2.0}):
        with pytest.raises(UsageError, match="fewest is"):
            nsfw("", **settings)
    with pytest.raises(UsageError, match="no word list for.*fr"):
        Nsfw(["fr"])


MIT = """// Copyright 2020 A. Author. All rights reserved.
// Permission is hereby granted, free of charge, to any person
//   obtaining a copy of this software"""


def code(text: str, **metadata: Any) -> Document:
    return Document(text, "a", metadata={"domain": "code", **metadata})


@pytest.mark.parametrize(
    ("text", "licence", "reason"),
    [
        ("# SPDX-License-Identifier: Apache-2.0\nx = 1", "Apache-2.0", None),
        ("/* SPDX-License-Identifier: GPL-2.0-only */", "GPL-2.0-only", "licence_not_allowed"),
        ("# SPDX-License-Identifier: MIT OR GPL-2.0-only", "MIT OR GPL-2.0-only", None),
        ("# SPDX-License-Identifier: MIT AND GPL-3.0-only", None, "licence_not_allowed"),
        ("# SPDX-License-Identifier: (GPL-2.0-only OR mit) AND ISC", None, None),
        ("# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception", None, None),
        ("# SPDX-License-Identifier: (MIT", None, "licence_not_allowed"),
        ("# SPDX-License-Identifier: MIT ISC", None, "licence_not_allowed"),
        (MIT, "MIT", None),
        ("/* GNU General Public\n * License */", "GPL-2.0", "licence_not_allowed"),
        ("# All rights reserved.", "proprietary", "licence_not_allowed"),
        ("x = 1", None, "licence_unknown"),
    ],
)
def test_code_is_kept_by_its_licence(text: str, licence: str | None, reason: str | None) -> None:
    document = code(text)
    assert Licence().check(document) == reason
    if licence:
        assert document.metadata["license"] == licence_of(text) == licence


def test_what_the_repository_says_comes_first() -> None:
    document = code("# SPDX-License-Identifier: MIT", license=["GPL-3.0"])
    assert Licence().check(document) == "licence_not_allowed"
    assert Licence(["GPL-3.0"]).check(document) is None
    assert Licence(keep_unknown=True).check(code("x = 1")) is None
    with pytest.raises(UsageError, match="allow is empty"):
        Licence([])


def test_prose_has_no_licence_to_judge() -> None:
    for metadata in ({}, {"domain": "web"}, {"domain": "web", "license": "GPL-3.0"}):
        page = Document("The library was opened in 1912. All rights reserved.", "a")
        page.metadata |= metadata
        assert Licence().check(page) is None and page.metadata == metadata
    page.metadata["domain"] = "notebooks"
    for domains in (["code", "notebooks"], ["*"]):
        assert Licence(domains=domains).check(page) == "licence_not_allowed"
    with pytest.raises(UsageError, match="domains is a list"):
        Licence(domains="code")


def test_a_document_without_a_domain_is_judged_by_the_licence_it_names() -> None:
    for text, metadata, reason in (
        ("x = 1", {"license": "GPL-3.0"}, "licence_not_allowed"),
        ("x = 1", {"license": "MIT"}, None),
        ("# SPDX-License-Identifier: GPL-3.0-only\nx = 1", {}, "licence_not_allowed"),
        ("# SPDX-License-Identifier: MIT\nx = 1", {}, None),
        ("x = 1\n" * 1000 + "# SPDX-License-Identifier: GPL-3.0-only", {}, None),
        ("# SPDX-License-Identifier: GPL-3.0-only", {"domain": "web"}, None),
    ):
        assert Licence().check(Document(text, "a", metadata=dict(metadata))) == reason


def test_apache_of_this_repository_is_known() -> None:
    text = Path(__file__).parents[2].joinpath("LICENSE").read_text()
    assert licence_of(text) == "Apache-2.0"
