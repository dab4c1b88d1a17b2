"""Decides how a tokenizer for pretraining is learnt: byte-level BPE, or Unigram with byte fallback.

Every text survives a round trip, with either. BPE works on bytes. Unigram works on characters, and
writes those it does not know as bytes: blanks stay blanks (no U+2581, which a text may contain) and
nothing is put before a text. Its byte tokens, such as ``<0x41>``, are spelled as a text may spell
them, so they score far below any way of writing that text with its own characters.

Text is first cut into words with the character before them, runs of digits (one each, or up to
three), punctuation, and white space. The tokenizer of ``tokenizer.py`` stays the small example's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pretrain.checked_settings import CheckedSettings
from pretrain.data.fim import MIDDLE, PREFIX, SUFFIX
from pretrain.errors import UsageError
from pretrain.new_folder import check_free, new_folder
from pretrain.tokenizer import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    PAD,
    TURN_END,
    TURN_START,
    VISIBLE,
    with_visible,
)
from pretrain.tokenizer_sample import Sample

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Group = Literal["chat", "thinking", "tools", "fim", "image"]
TOOLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
GROUPS: dict[Group, tuple[str, ...]] = {
    "chat": (TURN_START, TURN_END),
    "thinking": VISIBLE,
    "tools": TOOLS,
    "fim": (PREFIX, SUFFIX, MIDDLE, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    "image": ("<image>",),
}
# Rewards and parsers read these in decoded text, so they are tokens, but not special ones.
_VISIBLE = (*VISIBLE, *TOOLS)
_UNKNOWN = "<unk>"  # the model wants one; byte fallback never writes it
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PRINTABLE = [chr(code) for code in range(32, 127)]
_FAR_BELOW = 1000.0  # log-probability


class TokenizerSettings(CheckedSettings):
    """What kind of tokenizer, and how large."""

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: int = Field(default=32_768, description="everything together")
    groups: tuple[Group, ...] = Field(
        default=tuple(GROUPS), description="of special tokens: " + ", ".join(GROUPS)
    )
    reserved: int = Field(default=0, ge=0, description="special tokens for later uses")
    digits: Literal[1, 3] = Field(default=1, description="most digits in one token")
    coverage: float = Field(
        default=0.9995, gt=0, le=1, description="of the characters; Unigram writes others as bytes"
    )
    max_length: int = Field(default=4096, gt=0, description="window of the model")

    @property
    def added(self) -> tuple[str, ...]:
        """Special and visible tokens, in the order of their ids."""
        groups = (token for group in GROUPS if group in self.groups for token in GROUPS[group])
        return (END_OF_TEXT, PAD, *groups, *(f"<|reserved_{n}|>" for n in range(self.reserved)))


def pieces(digits: int) -> str:
    """The expression whose matches are tokenised one by one."""
    return (
        r"(?i:'(?:s|t|re|ve|m|ll|d))(?!\p{L})"
        r"|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+"
        rf"|\p{{N}}{{1,{digits}}}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def train(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    """Raises UsageError for a vocabulary that does not hold the bytes and special tokens, or that
    the texts can't fill. Unigram reads the texts twice.
    """
    from transformers import PreTrainedTokenizerFast

    characters = len(_PRINTABLE) + 1 if settings.kind == "unigram" else 0
    fixed = len(settings.added) + len(_BYTES) + characters
    if settings.vocab_size <= fixed:
        raise UsageError(
            f"vocab_size = {settings.vocab_size}: {fixed} are taken by bytes and special tokens"
        )
    learnt = _bpe(texts, settings) if settings.kind == "bpe" else _unigram(texts, settings)
    if (size := learnt.get_vocab_size()) != settings.vocab_size:
        raise UsageError(
            f"the texts give a vocabulary of {size}, not {settings.vocab_size}: there is too "
            "little text, or characters of too many kinds, for this vocab_size"
        )
    chat = "chat" in settings.groups
    special = [token for token in settings.added if token not in (END_OF_TEXT, PAD, *_VISIBLE)]
    return PreTrainedTokenizerFast(
        tokenizer_object=with_visible(learnt, _VISIBLE),
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=special,
        chat_template=CHAT_TEMPLATE if chat else None,
        model_max_length=settings.max_length,
        clean_up_tokenization_spaces=False,
    )


def _bpe(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces(settings.digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(settings.added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _rare(texts: Iterable[str], coverage: float) -> list[int]:
    """Code points that would be in the vocabulary for less than 1 - coverage of the text."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    left = (1 - coverage) * counts.total()
    rare = [0]  # the trainer ends its sentences with it
    for character, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        if (left := left - count) < 0:
            break
        rare.append(ord(character))
    return rare


def _unigram(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    learning = Tokenizer(models.Unigram())
    learning.pre_tokenizer = pre_tokenizers.Split(Regex(pieces(settings.digits)), "isolated")
    trainer = trainers.UnigramTrainer(
        vocab_size=settings.vocab_size - len(_BYTES) - len(settings.added),
        special_tokens=[_UNKNOWN],
        unk_token=_UNKNOWN,
        initial_alphabet=_PRINTABLE,
        show_progress=False,
    )
    rare = dict.fromkeys(_rare(texts, settings.coverage), "\n")
    learning.train_from_iterator((text.translate(rare) for text in texts), trainer)
    vocabulary: list[list[Any]] = json.loads(learning.to_str())["model"]["vocab"]
    learnt = [(piece, score) for piece, score in vocabulary if piece != _UNKNOWN]
    least = min(score for _, score in learnt) - _FAR_BELOW
    model = models.Unigram([(piece, least) for piece in (_UNKNOWN, *_BYTES)] + learnt, 0, True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = learning.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(one, normalized=False) for one in settings.added])
    return tokenizer


def save_trained(sample: Sample, settings: TokenizerSettings, out: str | Path) -> Path:
    """Learn from a sample and save a new folder, whole or not at all.

    ``tokenizer_training.json`` has settings and shares. Raises UsageError as ``train`` does, or
    when ``out`` exists.
    """
    check_free(Path(out))
    tokenizer = train(_Texts(sample), settings)
    record = {
        "settings": settings.model_dump(),
        "sample": sample.settings.model_dump(),
        "shares": sample.shares,
        "characters": sample.characters,
    }
    with new_folder(Path(out)) as aside:
        tokenizer.save_pretrained(aside)
        (aside / "tokenizer_training.json").write_text(json.dumps(record, indent=1) + "\n")
    return Path(out)


@dataclass(frozen=True)
class _Texts:
    """The texts of a sample, as often as they are asked for."""

    sample: Sample

    def __iter__(self) -> Iterator[str]:
        return (text.text for text in self.sample)
