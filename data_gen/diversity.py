"""How diverse a data set is: numbers for its summary, none of them a judgement.

distinct_n        distinct word n-grams over all n-grams (Li 2016); falls with the size of a set,
                  so compare sets of the same size
self_bleu         mean BLEU-4 of a text against the others (Zhu 2018): 1 is all the same
near_duplicates   share of texts that are like an earlier one (``data_gen.near_duplicates``)
pass_rate         prompts by the share of their judged samples that are correct, dropped included
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_gen.near_duplicates import NearDuplicates
from data_gen.rouge import words_of

SAMPLE = 2000  # texts, drawn evenly
BLEU_SAMPLE = 100  # each against all others


class Survey:
    """Sees every row once, and holds a sample of the kept texts."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._seen = 0
        self._draw = random.Random(0)
        self._judged: dict[str, list[bool]] = defaultdict(list)

    def see(self, row: Mapping[str, Any]) -> None:
        """Count a row, kept or not."""
        if row.get("outcome") in ("correct", "wrong", "unparseable"):
            self._judged[row["source"]].append(row["outcome"] == "correct")
        if row["dropped"]:
            return
        self._seen += 1
        if len(self._texts) < SAMPLE:
            self._texts.append(written(row))
        elif (place := self._draw.randrange(self._seen)) < SAMPLE:
            self._texts[place] = written(row)

    def found(self) -> dict[str, Any]:
        """For summary.json."""
        texts = [words_of(text) for text in self._texts]
        finder = NearDuplicates()
        alike = sum(finder.like(text) is not None for text in self._texts)
        numbers = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
        numbers |= {"self_bleu": self_bleu(texts[:BLEU_SAMPLE])}
        numbers |= {"near_duplicates": alike / len(texts) if texts else None}
        rounded = {name: None if one is None else round(one, 4) for name, one in numbers.items()}
        return {"texts": len(texts), **rounded, "pass_rate": self._pass_rates()}

    def _pass_rates(self) -> dict[str, int]:
        rates = [sum(right) / len(right) for right in self._judged.values()]
        return dict(sorted(Counter(map(_bucket, rates)).items()))


def written(row: Mapping[str, Any]) -> str:
    """What the model wrote of a row: its answers, the chosen one, or the text."""
    if row.get("text"):
        return str(row["text"])
    messages = row.get("chosen") or row.get("messages") or row.get("prompt") or ()
    if isinstance(messages, str):
        return messages
    answers = [str(m.get("content") or "") for m in messages if m["role"] == "assistant"]
    return "\n".join(answers or [str(m.get("content") or "") for m in messages])


def distinct(texts: Iterable[Sequence[str]], n: int) -> float | None:
    """Distinct n-grams over all; None where there is none."""
    grams = Counter(gram for words in texts for gram in _grams(words, n))
    return len(grams) / grams.total() if grams else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 of each text against the others; None for fewer than two."""
    if len(texts) < 2:
        return None
    return sum(bleu(one, [*texts[:i], *texts[i + 1 :]]) for i, one in enumerate(texts)) / len(texts)


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 (Papineni 2002); a precision of 0 counts as 1 over twice the number of n-grams."""
    logs = []
    for n in range(1, min(4, len(words)) + 1):
        grams, most = Counter(_grams(words, n)), Counter[tuple[str, ...]]()
        for reference in references:
            most |= Counter(_grams(reference, n))
        met = (grams & most).total()
        logs.append(math.log((met or 0.5) / grams.total()))
    if not logs:
        return 0.0
    near = min((abs(len(one) - len(words)), len(one)) for one in references)[1]
    brevity = min(0.0, 1 - near / len(words))
    return math.exp(sum(logs) / len(logs) + brevity)


def _grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _bucket(rate: float) -> str:
    if rate in (0.0, 1.0):
        return "0" if rate == 0 else "1"
    return ("0 to 1/4", "1/4 to 1/2", "1/2 to 3/4", "3/4 to 1")[min(3, int(rate * 4))]
