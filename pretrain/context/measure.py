"""Decides how the use of a long context is measured: needles found, and long documents read.

Needle: one sentence among filler of a given length, asked for at the end; every token of the answer
has to be the most likely one, which is what greedy decoding would write. The passkey is the task of
Mohtashami & Jaggi (arXiv:2305.16300, appendix A); other tasks are a ``Needle`` of one's own.

Documents: mean loss of the tokens in each part of the window, over documents at least that long.
Perplexity that falls, or stays, from part to part is a context that is used; one that rises is a
model which has left what it was trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
_FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)
_KEY = "The pass key is {key}. Remember it. {key} is the pass key.\n"
_QUESTION = "What is the pass key? The pass key is"
_PLAIN: dict[str, Any] = {"add_special_tokens": False}


class Needle(Protocol):
    """A task of any length."""

    def __call__(
        self, length: int, depth: float, rng: random.Random
    ) -> tuple[list[int], list[int]]:
        """Context and answer, together at most ``length`` tokens; ``depth`` is the needle's place,
        0 at the start and 1 at the end."""
        ...


def passkey(tokenizer: PreTrainedTokenizerBase) -> Needle:
    """A number of five digits in repeated sentences. The answer follows the question."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, **_PLAIN)["input_ids"])

    def make(length: int, depth: float, rng: random.Random) -> tuple[list[int], list[int]]:
        key = str(rng.randint(10_000, 99_999))
        needle, question, answer = ids(_KEY.format(key=key)), ids(_QUESTION), ids(f" {key}")
        task = ids(_TASK)
        filler = ids(_FILLER)
        room = length - len(task) - len(needle) - len(question) - len(answer)
        if room < len(filler):
            raise UsageError(
                f"{length} tokens are too few for a passkey: with this tokenizer it needs "
                f"{length - room + len(filler)}"
            )
        lines = room // len(filler)
        before = round(depth * lines)
        context = [*task, *filler * before, *needle, *filler * (lines - before), *question]
        return context, answer

    return make


def needle_accuracy(
    model: PreTrainedModel,
    needle: Needle,
    length: int,
    *,
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    samples: int = 4,
    seed: int = 0,
) -> dict[float, float]:
    """Depth -> share of needles found in contexts of ``length`` tokens."""
    rng = random.Random(seed)
    found = {}
    for depth in depths:
        tasks = [needle(length, depth, rng) for _ in range(samples)]
        found[depth] = sum(_answers(model, *task) for task in tasks) / samples
    return found


def _answers(model: PreTrainedModel, context: list[int], answer: list[int]) -> bool:
    import torch

    ids = torch.tensor([context + answer], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits
    return bool(logits[0, :-1].argmax(-1).tolist() == answer)


def document_perplexity(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], length: int, *, parts: int = 4
) -> list[float]:
    """Perplexity in each of ``parts`` equal parts of a window of ``length`` tokens.

    ``documents`` are token ids; the first ``length`` of those that have so many are read. Raises
    UsageError where none has.
    """
    import torch
    from torch.nn.functional import cross_entropy

    long = [list(one[:length]) for one in documents if len(one) >= length]
    if not long:
        longest = max(map(len, documents), default=0)
        raise UsageError(f"no document of {length:,} tokens: the longest has {longest:,}")
    if not 1 <= parts < length:
        raise UsageError(f"{parts} parts of {length} tokens: choose 1 to {length - 1}")
    sums, counts = [0.0] * parts, [0] * parts
    for document in long:
        ids = torch.tensor([document], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        losses = cross_entropy(logits, ids[0, 1:], reduction="none")
        for part, piece in enumerate(losses.tensor_split(parts)):
            sums[part] += float(piece.sum())
            counts[part] += len(piece)
    return [math.exp(min(total / n, 700.0)) for total, n in zip(sums, counts, strict=True)]
