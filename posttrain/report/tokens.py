"""The text of each token, for showing them one by one.

Only tokenizer.json is needed, not the model: ``RunDir.create`` keeps a copy in the run. Without
one (a model without a fast tokenizer) rollouts are shown as plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 6  # tokens that may have to be taken together to make one character


class TokenTexts:
    """Decodes ids one at a time, so that the pieces join to the text of the whole."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = lru_cache(maxsize=1 << 16)(
            lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))
        )

    @classmethod
    def find(cls, run: Path, model: str) -> TokenTexts | None:
        """From the run, or from the model's folder; None without a tokenizer.json."""
        from tokenizers import Tokenizer

        for folder in (run, Path(model)):
            path = folder / "tokenizer.json"
            if path.is_file():
                try:
                    return cls(Tokenizer.from_file(str(path)))
                except Exception:  # noqa: BLE001 - tokenizers raises bare Exception for a bad file
                    continue
        return None

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """One string per token. A character made of several tokens is the last one's.

        Each token is decoded behind the one before it, because some decoders drop a space at the
        start of a text.
        """
        pieces: list[str] = []
        before: tuple[int, ...] = ()
        pending: tuple[int, ...] = ()
        for token in token_ids:
            pending = (*pending, int(token))
            prefix = self._decode(before)
            text = self._decode(before + pending)[len(prefix) :]
            if text.endswith(_REPLACEMENT) and len(pending) < _LONGEST:
                pieces.append("")
                continue
            pieces.append(text)
            before, pending = pending, ()
        if pending:
            pieces[-1] = self._decode(before + pending)[len(self._decode(before)) :]
        return pieces
