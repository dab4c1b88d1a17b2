"""Instructions on the shape of an answer: paragraphs, lists, marks, its first and last words."""

from __future__ import annotations

import re

from rewards import json_text
from rewards.instructions.kinds import kind
from rewards.json_schema import without_fence

CHOICES = ["My answer is yes.", "My answer is no.", "My answer is maybe."]
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|[-+•])[ \t]*\S", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_HIGHLIGHT = re.compile(r"\*\*([^\n*]++)\*\*|\*([^\n*]++)\*")
_PUNCTUATION = ".,?!:;'\"*_-()“”‘’"


@kind("length_constraints:number_paragraphs")
def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """So many paragraphs with ``***`` between them; none is empty."""
    found = _divided(text, "***")
    return len(found) == num_paragraphs and all(found)


@kind("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """So many paragraphs with an empty line between them; the nth starts with the word."""
    found = [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    if len(found) != num_paragraphs or not 1 <= nth_paragraph <= len(found):
        return False
    word = found[nth_paragraph - 1].split(maxsplit=1)[0].strip(_PUNCTUATION)
    return word.casefold() == first_word.strip().casefold()


@kind("detectable_content:postscript")
def postscript(text: str, postscript_marker: str) -> bool:
    """A line starts with the marker (``P.S.``, spaces aside), and says something."""
    marker = "".join(postscript_marker.casefold().split())
    for line in text.splitlines():
        packed = "".join(line.strip(" \t*_>").casefold().split())
        if packed.startswith(marker) and any(map(str.isalnum, packed[len(marker) :])):
            return True
    return False


@kind("detectable_content:number_placeholders")
def number_placeholders(text: str, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, such as ``[address]``."""
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


@kind("detectable_format:number_bullet_lists")
def number_bullets(text: str, num_bullets: int) -> bool:
    """Exactly so many bullet points in Markdown."""
    return len(_BULLET.findall(text)) == num_bullets


@kind("detectable_format:title")
def title(text: str) -> bool:
    """A title in double angular brackets, such as ``<<poem of joy>>``."""
    for line in text.splitlines():
        _, opened, rest = line.partition("<<")
        inside, closed, _ = rest.rpartition(">>")
        if opened and closed and inside.strip("<> \t"):
            return True
    return False


@kind("detectable_format:constrained_response")
def constrained_response(text: str, options: list[str] = CHOICES) -> bool:
    """Exactly one of the options is there."""
    return sum(option in text for option in options) == 1


@kind("detectable_format:number_highlighted_sections")
def highlighted_sections(text: str, num_highlights: int) -> bool:
    """At least so many stretches in Markdown's ``*emphasis*``."""
    found = [strong + weak for strong, weak in _HIGHLIGHT.findall(text)]
    return sum(1 for stretch in found if stretch.strip()) >= num_highlights


@kind("detectable_format:multiple_sections")
def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each headed by the word and a number: ``Section 1``."""
    heads = re.findall(rf"(?<!\w){re.escape(section_spliter.strip())}\s?\d+", text)
    return len(heads) >= num_sections


@kind("detectable_format:json_format")
def json_format(text: str) -> bool:
    """The whole is one JSON value, with or without a Markdown fence around it."""
    try:
        json_text.parse(without_fence(text))
    except ValueError:
        return False
    return True


@kind("combination:repeat_prompt")
def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """It starts with the prompt again, and goes on; case and white space aside."""
    prompt, said = (" ".join(one.casefold().split()) for one in (prompt_to_repeat, text))
    return said.startswith(prompt) and len(said) > len(prompt)


@kind("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two responses with ``******`` between them, not the same."""
    found = _divided(text, "******")
    return len(found) == 2 and all(found) and found[0] != found[1]


@kind("startend:end_checker")
def end_phrase(text: str, end_phrase: str) -> bool:
    """The last words are exactly these; a quote after them is overlooked."""
    return text.strip().strip('"').casefold().endswith(end_phrase.strip().strip('"').casefold())


@kind("startend:quotation")
def quotation(text: str) -> bool:
    """The whole stands in double quotes."""
    text = text.strip()
    return len(text) > 2 and text.startswith('"') and text.endswith('"')


def _divided(text: str, divider: str) -> list[str]:
    """The stretches between dividers, stripped; a divider at either end divides nothing."""
    parts = [part.strip() for part in text.split(divider)]
    if len(parts) > 1 and not parts[0]:
        parts = parts[1:]
    if len(parts) > 1 and not parts[-1]:
        parts = parts[:-1]
    return parts
