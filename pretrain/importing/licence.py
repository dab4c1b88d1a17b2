"""Decides what is said of a licence: what the files say, without a judgement."""

from __future__ import annotations

import re
from pathlib import Path

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)
_FIELD = re.compile(r"^(license|license_name|license_link)\s*:\s*(.+?)\s*$", re.MULTILINE)


def licence_files(folder: Path) -> list[Path]:
    """What belongs to the weights wherever they go."""
    names = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)([._-].*)?", re.IGNORECASE)
    return sorted(
        path for path in folder.iterdir() if path.is_file() and names.fullmatch(path.name)
    )


def licence_of(folder: Path) -> str:
    """From the card's front matter, and the first line of a licence file; "" where neither is."""
    found = []
    card = folder / "README.md"
    if card.is_file():
        head = _FRONT_MATTER.match(card.read_text(errors="replace"))
        fields = dict(_FIELD.findall(head[1])) if head else {}
        if fields:
            written = ", ".join(f"{name}: {value}" for name, value in fields.items())
            found.append(f"README.md says {written}")
    for path in licence_files(folder):
        lines = (line.strip() for line in path.read_text(errors="replace").splitlines())
        found.append(f"{path.name} begins {next(filter(None, lines), '')[:80]!r}")
    return "; ".join(found)
