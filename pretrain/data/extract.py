"""Decides which text of a page is its content.

resiliparse's main content drops menus, footers and sidebars; on pages with much structure it also
drops headings, lists and tables, and sometimes half of the prose. So the full text is compared:
when it has prose that the main content lacks, and more than a little, the page's text is the full
text from its first to its last line of content, which leaves the navigation around it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

if TYPE_CHECKING:
    from datatrove.data import Document

_PROSE = 80  # characters of a line that is hardly navigation


class Extract:
    """HTML to text. Documents that are text already pass.

    ``max_lost_prose``: how much prose the main content may lack, as a share of its length.
    """

    name = "extract"

    def __init__(self, max_lost_prose: float = 0.05, min_characters: int = 1) -> None:
        self.max_lost_prose = max_lost_prose
        self.min_characters = min_characters

    def check(self, document: Document) -> str | None:
        if not document.metadata.pop("html", False):
            return None
        document.text = content(document.text, self.max_lost_prose)
        return None if len(document.text) >= max(self.min_characters, 1) else "no_text"


def content(html: str, max_lost_prose: float = 0.05) -> str:
    """The text of the page's content, a line for each block of it."""
    tree = HTMLTree.parse(html)
    main: str = extract_plain_text(tree, main_content=True, alt_texts=False)
    full: str = extract_plain_text(tree, alt_texts=False)
    if len(full) <= len(main) * (1 + max_lost_prose):
        return main.strip()  # there can't be enough that was lost
    kept = {line.strip() for line in main.split("\n")}
    lines = full.split("\n")
    lost = [i for i, line in enumerate(lines) if len(line) >= _PROSE and line.strip() not in kept]
    if sum(len(lines[i].strip()) for i in lost) <= max_lost_prose * len(main):
        return main.strip()
    found = [i for i, line in enumerate(lines) if line.strip() in kept and line.strip()]
    inside = sorted({*found[:1], *found[-1:], *lost})
    return "\n".join(lines[inside[0] : inside[-1] + 1]).strip()
