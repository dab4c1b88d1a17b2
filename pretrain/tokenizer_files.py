"""Decides what a tokenizer folder is to this package, and when two tokenizers are the same.

A folder with ``tokenizer.json``, as transformers saves it. Two are the same when every text gets
the same ids: the fingerprint is over what decides that (vocabulary, merges, added tokens,
normaliser, pre-tokeniser), not over padding, templates or how the file is laid out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ADDED = "added_tokens"
_DECIDES_IDS = ("model", _ADDED, "normalizer", "pre_tokenizer")
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")  # where none is named
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("chat_template.jinja", "added_tokens.json"),
)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as it lies on the disk."""

    folder: Path
    written: str  # tokenizer.json in the library's own form
    settings: dict[str, Any]  # tokenizer_config.json

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Without truncation or padding."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.written)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return dict(self.tokenizer.get_vocab(with_added_tokens=True))

    @property
    def rows(self) -> int:
        """Rows that an embedding needs: the largest id and one."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """The same for tokenizers that give every text the same ids."""
        parts = json.loads(self.written)
        decides = json.dumps({name: parts.get(name) for name in _DECIDES_IDS}, sort_keys=True)
        return "sha256:" + hashlib.sha256(decides.encode()).hexdigest()

    def id_of(self, token: str, what: str) -> int:
        """Raises UsageError where ``token``, which is ``what``, is none of the tokenizer's."""
        found = self.vocabulary.get(token)
        if found is None:
            raise UsageError(f"{self.folder}: {token!r} ({what}) is not a token of this tokenizer")
        return int(found)

    def end_token(self, wanted: str = "") -> str:
        """The token that ends a document: ``wanted``, or the one the folder names.

        Raises UsageError where there is none.
        """
        named = self.settings.get("eos_token")
        wanted = wanted or (named["content"] if isinstance(named, dict) else named or "")
        token = wanted or next((token for token in _ENDS if token in self.vocabulary), "")
        if not token:
            raise UsageError(f"{self.folder} names no end token: set end_token")
        self.id_of(token, "the end token")
        return str(token)


def read_tokenizer(folder: str | Path) -> TokenizerFiles:
    """Raises UsageError for a folder without a tokenizer that the tokenizers library reads."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"no tokenizer in {folder}: it has no tokenizer.json")
    try:
        written = Tokenizer.from_file(str(path)).to_str()
        config = path.with_name("tokenizer_config.json")
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except Exception as error:
        raise UsageError(f"can't read the tokenizer in {folder}: {error}") from error
    return TokenizerFiles(Path(folder), written, settings)


def difference(one: TokenizerFiles, other: TokenizerFiles) -> str:
    """Why the two don't give the same ids; "" when they do."""
    if one.fingerprint == other.fingerprint:
        return ""
    ids = {number: token for token, number in other.vocabulary.items()}
    first = next(
        (
            (number, token)
            for token, number in sorted(one.vocabulary.items(), key=lambda item: item[1])
            if ids.get(number) != token
        ),
        None,
    )
    if first:
        number, token = first
        theirs = repr(ids[number]) if number in ids else "no token"
        return f"id {number} is {token!r} in {one.folder} and {theirs} in {other.folder}"
    more = sorted(set(other.vocabulary) - set(one.vocabulary), key=other.vocabulary.__getitem__)
    if more:
        return f"{other.folder} has {len(more)} more tokens than {one.folder}, {more[:3]} first"
    parts, others = json.loads(one.written), json.loads(other.written)
    name = next(name for name in _DECIDES_IDS if parts.get(name) != others.get(name))
    return f"the two have the same vocabulary, but another {name} ({one.folder}, {other.folder})"


def extends(longer: TokenizerFiles, one: TokenizerFiles) -> bool:
    """Whether ``longer`` is ``one`` with added tokens, so that no id means anything else."""
    parts, others = json.loads(longer.written), json.loads(one.written)
    same = all(parts.get(name) == others.get(name) for name in _DECIDES_IDS if name != _ADDED)
    kept = one.vocabulary.items() <= longer.vocabulary.items()
    return same and kept and len(longer.vocabulary) > len(one.vocabulary)
