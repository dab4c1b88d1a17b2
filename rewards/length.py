"""Rewards that depend on the length of a completion in tokens.

The length is the column ``n_tokens`` where the caller knows it, else it is counted with
``tokenizer``: a checkpoint folder, a ``tokenizer.json``, or a function of the text. A count made
from text can differ from what was sampled by a few tokens (the end of sequence, text that decodes
and encodes differently), and sees the last message only.

The soft overlong punishment is eq. 13 of DAPO (arXiv:2503.14476): with L_max = ``max_tokens`` and
L_cache = ``buffer``,

    0                                   for length <= L_max - L_cache
    ((L_max - L_cache) - length) / L_cache      up to L_max
    -1                                  beyond

The cosine reward is that of "Demystifying Long Chain-of-Thought" (arXiv:2502.03373): from the value
at length 0 to the one at ``max_tokens`` along half a cosine, for right and wrong answers apart, and
a value of its own for what reached the limit. Left out of the paper: nothing; its repetition
penalty is ``rewards.repetition``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rewards.calling import Case, CaseReward, apply
from rewards.registry import Reward, check_row, load, register, required_columns
from rewards.score import Outcome, Score

Tokenizer = str | Callable[[str], Any]


def count_tokens(completion: str, n_tokens: int | None, tokenizer: Tokenizer | None) -> int:
    """The length in tokens. Raises ValueError when neither a count nor a tokenizer is given."""
    if n_tokens is not None:
        return int(n_tokens)
    if tokenizer is None:
        raise ValueError("needs a column n_tokens or a setting tokenizer=<checkpoint folder>")
    if isinstance(tokenizer, str):
        return len(_tokenizer(tokenizer).encode(completion, add_special_tokens=False).ids)
    counted = tokenizer(completion)
    return counted if isinstance(counted, int) else len(counted)


def _check_overlong(fields: Mapping[str, Any]) -> None:
    max_tokens, buffer = fields.get("max_tokens", 1), fields.get("buffer", 1)
    if not 0 < buffer <= max_tokens and {"max_tokens", "buffer"} <= fields.keys():
        raise ValueError(f"needs 0 < buffer <= max_tokens, got {buffer} and {max_tokens}")
    if isinstance(fields.get("tokenizer"), str):
        _tokenizer(fields["tokenizer"])


@register("overlong", settings=["tokenizer"], check=_check_overlong)
def overlong(
    completion: str,
    max_tokens: int,
    buffer: int,
    n_tokens: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Score:
    """DAPO's soft overlong punishment, from 0 (CORRECT) down to -1: add it to a reward.

    ``load("overlong", max_tokens=20480, buffer=4096)``.

    Can it be hacked? It only ever punishes, so the cheapest completion is an empty one: it must be
    summed with a reward for being right, whose range is larger than 1.
    """
    length = count_tokens(completion, n_tokens, tokenizer)
    over = length - (max_tokens - buffer)
    value = 0.0 if over <= 0 else max(-1.0, -over / buffer)
    return Score(value, Outcome.WRONG if over > 0 else Outcome.CORRECT, {"n_tokens": float(length)})


class Cosine(CaseReward):
    """Another reward's verdict, valued by length; made by ``load("cosine", of="math", ...)``.

    ``right`` and ``wrong`` are the values at length 0 and at ``max_tokens``; ``exceeded`` is the
    value of what reached ``max_tokens``, right or wrong. With the defaults, which are milder than
    the paper's, a short right answer is worth more than a long one, and a short wrong one less.

    Can it be hacked? A wrong answer is worth more the longer it is: without a repetition penalty
    the model fills hard problems with repeated text, as the paper itself saw.
    """

    def __init__(
        self,
        of: str | Reward,
        max_tokens: int,
        right: tuple[float, float] = (1.0, 0.5),
        wrong: tuple[float, float] = (-1.0, -0.5),
        exceeded: float = -1.0,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.reward = load(of) if isinstance(of, str) else of
        self.max_tokens, self.exceeded, self.tokenizer = max_tokens, exceeded, tokenizer
        self.right, self.wrong = right, wrong
        self.required_columns = required_columns(self.reward)
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        if isinstance(tokenizer, str):
            _tokenizer(tokenizer)

    def check_row(self, fields: Mapping[str, Any]) -> None:
        check_row(self.reward, fields)

    async def judge_case(self, case: Case, timeout_s: float) -> Score:
        """Judge by the other reward, then value by length; its outcome and parts are kept."""
        score = await apply(self.reward, case, timeout_s=timeout_s)
        if score.value is None:
            return score
        length = count_tokens(case.completion, case.columns.get("n_tokens"), self.tokenizer)
        start, end = self.right if score.outcome is Outcome.CORRECT else self.wrong
        value = self.exceeded
        if length < self.max_tokens:
            value = end + (start - end) * (1 + math.cos(math.pi * length / self.max_tokens)) / 2
        parts = {**score.parts, "value": score.value, "n_tokens": float(length)}
        return Score(value, score.outcome, parts, score.detail)


register("cosine", factory=True)(Cosine)


@functools.lru_cache(maxsize=8)
def _tokenizer(path: str) -> Any:
    """A checkpoint's fast tokenizer. Raises ValueError when there is none."""
    import tokenizers

    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"no tokenizer can be read from {file}: {error}") from error
