"""Decides which tokens a reward model sees for a conversation that ends in an answer.

1. Messages are rendered by the chat template, without a generation prompt. The template alone
   decides about BOS: nothing is added to what it writes, so there is never a second one. With
   ``template="plain"`` the text is prompt + completion, and the tokenizer adds its own BOS.
2. Special tokens spelled out inside a message (``<|im_end|>``, ``<s>``) are data: a blank goes
   behind their first character, so that an answer cannot end its turn and speak as the user. The
   number of places is reported.
3. End token, ``eos``: ``keep`` leaves what the template wrote; ``append`` adds EOS where the last
   token is none; ``strip`` takes EOS and padding tokens off the end, for a model that was trained
   with pad = eos and has learnt to score the token before; ``auto`` appends where the tokenizer
   itself ends every text so (``add_eos_token``), else keeps.
4. Longer than the window, ``too_long``: ``error`` gives no score, ``truncate_left`` drops the
   oldest tokens behind BOS. Both are counted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from rewards.errors import UsageError, did_you_mean
from rewards.model.failures import Unjudged

Message = Mapping[str, Any]
PROBE: list[Message] = [
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "5"},
]
EOS_RULES = ("auto", "keep", "append", "strip")
LENGTH_RULES = ("error", "truncate_left")
PLAIN = "plain"
MAX_CHARS = 200_000  # a longer text is not tokenised when that can't bring it into the window
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_NO_LIMIT = 10**9  # tokenizers without a window say 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingSettings:
    """How text becomes tokens; the module docstring has the rules."""

    template: str = ""  # Jinja text, or "plain"; empty takes the tokenizer's own
    eos: str = "auto"
    max_tokens: int = 0  # 0 is the model's window
    too_long: str = "error"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("eos", self.eos, EOS_RULES),
            ("too_long", self.too_long, LENGTH_RULES),
        ):
            if value not in known:
                raise UsageError(f"{what} = {value!r} is not known.{did_you_mean(value, known)}")
        if self.max_tokens < 0:
            raise UsageError(
                f"max_tokens = {self.max_tokens} must be positive, or 0 for the window"
            )


S = TypeVar("S", bound=ReadingSettings)


def settings_of(kind: type[S], options: Mapping[str, Any]) -> S:
    """``options`` as settings of a ``kind``. Raises UsageError for one that it does not have."""
    known = {field.name for field in fields(kind)}
    for name in options:
        if name not in known:
            raise UsageError(f"there is no option {name!r} here.{did_you_mean(name, known)}")
    try:
        return kind(**options)
    except TypeError as error:
        raise UsageError(f"an option has a value of the wrong kind: {error}") from error


@dataclass(frozen=True, slots=True)
class Reading:
    """The tokens of one conversation."""

    ids: list[int]  # [T]
    cut: int = 0  # tokens that were dropped on the left, at least; exact below MAX_CHARS
    defused: int = 0  # special tokens that stood in a message as text

    def __len__(self) -> int:
        return len(self.ids)


def conversation(prompt: str, completion: str, messages: Sequence[Message]) -> list[Message]:
    """The messages with the completion as the last one, from the assistant.

    Raises Unjudged when they end in an assistant's message that is another text.
    """
    said = list(messages) or [{"role": "user", "content": prompt}]
    if said[-1].get("role") != "assistant":
        said.append({"role": "assistant", "content": completion})
    said = [{key: _sound(value) for key, value in message.items()} for message in said]
    if str(said[-1].get("content")) != _sound(completion):
        raise Unjudged("the last message is an assistant's, and its content is not the completion")
    return said


def _sound(value: Any) -> Any:
    """Text without lone surrogates, which neither a tokenizer nor JSON takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def load_tokenizer(path: str, what: str) -> Any:
    """Raises UsageError naming ``what`` asked for it when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{what}: no tokenizer can be loaded from {path}: {error}") from error


class Reader:
    """A tokenizer with its rules. Safe to use from several threads.

    ``window`` is the most tokens that the model takes. Raises UsageError without a chat template,
    without an EOS to append, or for ``max_tokens`` beyond the window.
    """

    def __init__(self, tokenizer: Any, window: int, settings: ReadingSettings, name: str) -> None:
        self.tokenizer, self._settings, self._name = tokenizer, settings, name
        self._plain = settings.template == PLAIN
        if not self._plain and not settings.template and not tokenizer.chat_template:
            raise UsageError(
                f"{name}: the tokenizer has no chat template, and a reward is given messages: pass "
                "template= with Jinja text, or template='plain' for prompt + completion as they are"
            )
        self._eos_rule = settings.eos if settings.eos != "auto" else _auto_eos(tokenizer)
        if self._eos_rule == "append" and tokenizer.eos_token_id is None:
            raise UsageError(f"{name}: eos='append', and the tokenizer has no EOS token")
        self.window = _window(tokenizer, window, settings.max_tokens, name)
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)
        special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        self._special = _any_of(special | set(tokenizer.all_special_tokens))
        self._lock = threading.Lock()
        try:
            self.probe_ids = self.read(PROBE).ids
        except Unjudged as failure:
            raise UsageError(f"{name}: a short conversation can't be read: {failure}") from failure

    def read(self, messages: Sequence[Message]) -> Reading:
        """Raises Unjudged for what is too long, or the template refuses."""
        safe, defused = self.defused(messages)
        text = self.render(safe)
        most = max(self.window * self._longest, MAX_CHARS)
        unread = max(0, len(text) - most)
        if unread:  # no tokenizer makes few enough tokens of it
            if self._settings.too_long == "error":
                raise Unjudged(
                    f"{len(text)} characters are over the window of {self.window} tokens"
                )
            bos = self.tokenizer.bos_token or ""
            text = (bos if text.startswith(bos) else "") + text[-most:]
        ids = self._ended(self.encode(text)["input_ids"])
        kept = self._fitted(ids)
        cut = len(ids) - len(kept) + unread // self._longest
        return Reading(kept, cut=cut, defused=defused)

    def defused(self, messages: Sequence[Message]) -> tuple[list[Message], int]:
        """The messages without special tokens as text, and how many there were."""
        if self._special is None:
            return list(messages), 0
        places = 0

        def safe(value: Any) -> Any:
            nonlocal places
            if isinstance(value, Mapping):
                return {key: safe(one) for key, one in value.items()}
            if isinstance(value, list | tuple):
                return [safe(one) for one in value]
            if not isinstance(value, str) or self._special is None:
                return value
            split, found = self._special.subn(lambda m: f"{m[0][0]} {m[0][1:]}", value)
            places += found
            if found and self._special.search(split):
                raise Unjudged("special tokens of the model stand inside each other in the text")
            return split

        return [safe(message) for message in messages], places

    def render(self, messages: Sequence[Message]) -> str:
        """The text that is tokenised. Raises Unjudged where the template refuses the messages."""
        if self._plain:
            roles = [message.get("role") for message in messages]
            if roles != ["user", "assistant"]:
                raise Unjudged(f"template='plain' holds one prompt and its answer, not {roles}")
            return "".join(str(message["content"]) for message in messages)
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._settings.template or None,
                tokenize=False,
                add_generation_prompt=False,
            )
        except Exception as error:  # boundary: the checkpoint's template, any text
            raise Unjudged(f"the chat template refuses the messages: {error}") from error
        return str(rendered)

    def encode(self, text: str, **options: Any) -> Any:
        """What the tokenizer makes of rendered text; the template wrote the special tokens."""
        with self._lock:
            return self.tokenizer(text, add_special_tokens=self._plain, verbose=False, **options)

    def _ended(self, ids: Sequence[int]) -> list[int]:
        ids, eos, pad = list(ids), self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        if self._eos_rule == "append" and (not ids or ids[-1] != eos):
            ids.append(eos)
        while self._eos_rule == "strip" and ids and ids[-1] in (eos, pad):
            ids.pop()
        if not ids:
            raise Unjudged("the conversation is rendered to no token at all")
        return ids

    def _fitted(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.window:
            return ids
        if self._settings.too_long == "error":
            raise Unjudged(
                f"{len(ids)} tokens are over the window of {self.window} (max_tokens, too_long)"
            )
        bos = self.tokenizer.bos_token_id
        first = ids[:1] if bos is not None and ids[0] == bos else []
        return first + ids[len(ids) - self.window + len(first) :]


def _auto_eos(tokenizer: Any) -> str:
    """Whether the tokenizer itself ends every text with EOS."""
    eos = tokenizer.eos_token_id
    own = tokenizer("a", add_special_tokens=True)["input_ids"]
    return "append" if eos is not None and list(own)[-1:] == [eos] else "keep"


def _window(tokenizer: Any, model: int, asked: int, name: str) -> int:
    """``asked`` if the model can take it, else the smaller of the model's and the tokenizer's."""
    if asked > (model or _NO_LIMIT):
        raise UsageError(f"{name}: max_tokens = {asked}, and the model's window is {model}")
    own = min(model or _NO_LIMIT, int(min(tokenizer.model_max_length, _NO_LIMIT)))
    if not asked and own == _NO_LIMIT:
        raise UsageError(f"{name}: neither model nor tokenizer names a window: pass max_tokens=")
    return asked or own


def _any_of(words: set[str]) -> re.Pattern[str] | None:
    """Matches any of ``words``, the longest first; one character alone cannot be split."""
    long = sorted((word for word in words if len(word) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, long))) if long else None


def checkpoint_folder(path: str | Path, what: str) -> Path:
    """``path`` as a folder with a config.json; ``owner/name`` that is none is left to transformers.

    Raises UsageError saying what is missing.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        if _HUB_NAME.fullmatch(str(path)) and not folder.parent.exists():
            return folder
        raise UsageError(
            f"{what}: {folder} does not exist; pass a checkpoint folder or a URL (http://...)"
        )
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "; it is an adapter: merge it into its base first" if adapter else ""
        raise UsageError(f"{what}: {folder} is not a checkpoint, it has no config.json{hint}")
    if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        raise UsageError(f"{what}: {folder} is not a checkpoint, it has a config and no weights")
    return folder
