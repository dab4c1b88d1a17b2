"""Decides how a text that nobody vouches for stands in a judge's prompt.

1. Characters that a reader cannot see are taken out and counted: control and zero-width characters,
   bidirectional overrides, fillers, variation selectors, the tags block (U+E0000 and after), lone
   surrogates. Joined emoji fall into their parts by this, and Persian loses its half spaces.
2. Text beyond the limit is left out of the middle, since the end often holds the answer; the place
   and the number of characters are written there and counted.
3. What could end the frame is defused and counted: our own tags, and the special tokens of chat
   templates, which several servers turn into real ones wherever they stand. The opening ``<`` or
   ``[`` becomes ``‹`` or ``⁅``, so that the judge can still read it.
4. The rest stands between tags that carry a number derived from a secret and the whole content: the
   same call has the same tags, and no text can hold the end of its own frame.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_RAW_CHARS = 2_000_000  # of a longer text only the ends are looked at
KEYS = 16  # verdict keys per secret: few, so that a server compiles few grammars

_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029]")
_NAMES = (
    "s|bos|eos|pad|unk|mask|cls|sep|sys|system|user|assistant|human|think|thinking|start_of_turn|"
    "end_of_turn|im_start|im_end|end_of_text|tool_call|tool_response|tool_calls|function_calls"
)
_SPECIAL = re.compile(
    rf"<(?=\s*/?\s*untrusted|[|\uff5c][^|\uff5c<>\n]{{1,64}}[|\uff5c]>|/?(?:{_NAMES})>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT)\])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as the judge will see it, and what was done to it."""

    text: str
    hidden: int = 0  # characters taken out because a reader cannot see them
    special: int = 0  # special tokens and tags of ours that were defused
    truncated: int = 0  # characters left out because the text is too long


def show(text: str, max_chars: int) -> Shown:
    """``text`` made fit to be framed; linear in its length."""
    truncated = max(0, len(text) - MAX_RAW_CHARS)
    if truncated:
        text = text[: MAX_RAW_CHARS // 2] + text[-MAX_RAW_CHARS // 2 :]
    raw = _LINE_ENDS.sub("\n", text)
    visible = _HIDDEN.sub("", raw)
    hidden = len(raw) - len(visible)
    if len(visible) > max_chars or truncated:
        head = max_chars * 3 // 4
        tail = max_chars - head
        truncated += max(0, len(visible) - max_chars)
        mark = f"\n[... {truncated} characters left out here to save room ...]\n"
        visible = visible[:head] + mark + visible[max(head, len(visible) - tail) :]
    defused, special = _SPECIAL.subn(lambda found: "‹" if found[0] == "<" else "⁅", visible)
    return Shown(defused, hidden, special, truncated)


class Frame:
    """The tags and the verdict key of one call, derived from ``secret`` and all of its content."""

    def __init__(self, secret: bytes, content: Mapping[str, str]) -> None:
        canonical = json.dumps(dict(content), sort_keys=True).encode()
        digest = hmac.new(secret, canonical, hashlib.sha256)
        self.nonce = digest.hexdigest()[:16]
        which = digest.digest()[-1] % KEYS
        self.key = "k-" + hmac.new(secret, b"key %d" % which, hashlib.sha256).hexdigest()[:12]

    def block(self, name: str, text: str) -> str:
        """``text``, already ``shown``, between tags that it cannot contain."""
        tag = f"untrusted-{name}-{self.nonce}"
        return f"<{tag}>\n{text}\n</{tag}>"
