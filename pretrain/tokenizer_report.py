"""Decides how tokenizers are compared: fertility by language and domain, and what they lose.

Fertility is tokens per word (Acs 2019), a word being what stands between white space. For languages
without blanks that says nothing, so bytes per token stand beside it: higher is better. Beside the
languages and domains of the documents there are three kinds of text inside them: fenced code, LaTeX
and digits. A document is lost when decoding its ids does not give it back.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pretrain.tokenizer_files import TokenizerFiles
from pretrain.tokenizer_sample import Text

_KINDS = {
    "fenced code": re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE),
    "LaTeX": re.compile(
        r"\$\$.{1,2000}?\$\$|\$[^$\n]{1,200}\$|\\\[.{1,2000}?\\\]|\\\(.{1,200}?\\\)"
        r"|\\begin\{(\w+\*?)\}.{1,2000}?\\end\{\1\}",
        re.DOTALL,
    ),
    "digits": re.compile(r"\d[\d.,]*\d|\d"),
}


@dataclass
class Report:
    """Counts of each group of texts: bytes, words, and ``tokens/NAME`` of each tokenizer."""

    names: list[str]
    groups: dict[str, Counter[str]] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)  # documents, by tokenizer
    documents: int = 0

    def as_json(self) -> dict[str, Any]:
        """{"documents", "lost", "groups": {group: {"bytes", "words", "tokenizers": {...}}}}."""
        groups = {
            group: {
                "bytes": counts["bytes"],
                "words": counts["words"],
                "tokenizers": {name: self._numbers(counts, name) for name in self.names},
            }
            for group, counts in self.groups.items()
        }
        lost = {name: self.lost[name] for name in self.names}
        return {"documents": self.documents, "lost": lost, "groups": groups}

    @staticmethod
    def _numbers(counts: Counter[str], name: str) -> dict[str, float]:
        tokens = counts[f"tokens/{name}"]
        return {
            "tokens": tokens,
            "tokens_per_word": tokens / max(counts["words"], 1),
            "bytes_per_token": counts["bytes"] / max(tokens, 1),
        }

    def text(self) -> str:
        """A table: tokens per word and bytes per token of each tokenizer."""
        width = max(len(name) for name in (*self.names, "0.00  0.00"))
        head = " ".join(f"{name:>{width}}" for name in self.names)
        lines = [f"{'tokens per word, bytes per token':34} {head}"]
        for group, counts in self.groups.items():
            cells = []
            for name in self.names:
                numbers = self._numbers(counts, name)
                both = f"{numbers['tokens_per_word']:.2f}  {numbers['bytes_per_token']:.2f}"
                cells.append(f"{both:>{width}}")
            lines.append(f"{group:34} {' '.join(cells)}")
        lost = " ".join(f"{self.lost[name]:>{width}}" for name in self.names)
        lines.append(f"{f'documents lost, of {self.documents:,}':34} {lost}")
        return "\n".join(lines)


def compare(
    tokenizers: Mapping[str, TokenizerFiles], texts: Iterable[Text], characters: int = 200_000
) -> Report:
    """Of each language and domain the first ``characters`` characters or a little more are read.

    Special tokens in a text are read as text.
    """
    report = Report(list(tokenizers))
    for files in tokenizers.values():
        files.tokenizer.encode_special_tokens = True
    read: Counter[str] = Counter()
    for text in texts:
        key = f"{text.language}/{text.domain}"
        if not text.text or read[key] >= characters:
            continue
        read[key] += len(text.text)
        _add(report, tokenizers, text)
    report.groups = dict(sorted(report.groups.items()))
    return report


def _add(report: Report, tokenizers: Mapping[str, TokenizerFiles], text: Text) -> None:
    report.documents += 1
    for group, part in _groups(text):
        counts = report.groups.setdefault(group, Counter())
        counts.update(bytes=len(part.encode(errors="replace")), words=len(part.split()))
        for name, files in tokenizers.items():
            ids = files.tokenizer.encode(part, add_special_tokens=False).ids
            counts[f"tokens/{name}"] += len(ids)
            if group.startswith("language"):
                decoded = files.tokenizer.decode(ids, skip_special_tokens=False)
                report.lost[name] += decoded != part


def _groups(text: Text) -> Iterator[tuple[str, str]]:
    """The whole text, once as its language's and once as its domain's, and parts of a kind."""
    yield f"language {text.language}", text.text
    yield f"domain {text.domain}", text.text
    for kind, pattern in _KINDS.items():
        for match in pattern.finditer(text.text):
            yield kind, match[1] if kind == "fenced code" else match[0]
