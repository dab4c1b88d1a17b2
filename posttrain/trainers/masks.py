"""Conversation -> token ids, and which of them the assistant has to write itself.

Decided here: a token is trained on when it lies inside an assistant's turn, from the first
character after the generation prompt up to and including the end token that the template writes.

Where a template has generation markers, they say what the turn is. Otherwise the turn is found by
rendering differences. Once for each order of roles, with a sentinel in place of every message, what
the template writes around an answer is found: between the generation prompt and the text
(``lead``), and after the text up to its end token (``close``). Then, for each answer of a
conversation, the rendering in which a sentinel stands for that answer alone splits into ``before
lead SENTINEL close after``, and the real rendering must be ``before + turn + after``: the turn is
what lies between. Nothing is assumed of what the template does to the answer itself (trim, drop
thoughts, render tool calls). Whatever does not fit is an error that says why; nothing is masked by
guess.

Both ways are proven on the sentinels, for each order of roles: the trained tokens must hold every
answer's sentinel whole, and touch nobody else's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

from posttrain.errors import UsageError
from posttrain.trainers.conversations import Conversation
from posttrain.trainers.probes import (
    Around,
    Layout,
    common,
    replaced,
    sentinels,
    shape,
    text_after,
    unsafe,
    with_text_arguments,
)
from posttrain.trainers.thoughts import bare, thinks, with_thoughts, without_thoughts

Thinking = Literal["template", "keep", "drop"]
Span = tuple[int, int]
Message = dict[str, Any]

_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OPENED = re.compile(r"<think>\s*(</think>\s*)?$")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as the model sees it."""

    token_ids: list[int]  # [T]
    trained: list[int]  # [T] 1 where a token carries loss
    unthinking: int = 0  # trained answers whose thoughts the template left out


class Renderer:
    """A tokenizer's chat template, with loss masks.

    ``thinking``: "template" leaves thoughts to the template, which drops them in earlier turns or
    everywhere with some models; "keep" writes every answer with its thoughts, as the row has them;
    "drop" takes them out first. ``variables`` are handed to the template (enable_thinking=False).
    Raises UsageError for a tokenizer without a chat template, or without offsets of its tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        thinking: Thinking = "template",
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError("the tokenizer has no chat template")
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} can't tell which characters a token stands for, so "
                "the assistant's can't be told apart: use a fast tokenizer (tokenizer.json)"
            )
        self.tokenizer = tokenizer
        self.thinking = thinking
        self._variables = dict(variables or {})
        self._special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
        self._layouts: dict[tuple[Any, ...], Layout] = {}
        self._proven: set[tuple[Any, ...]] = set()

    def __call__(self, conversation: Conversation) -> Rendered:
        """Raises UsageError when the template refuses the conversation, or can't be masked."""
        if self.thinking == "drop":
            conversation = without_thoughts(conversation)
        try:
            return self._rendered(conversation)
        except UsageError:
            written = with_text_arguments(conversation)
            if written == conversation:
                raise
            return self._rendered(written)  # a template that joins arguments as text

    def _rendered(self, conversation: Conversation) -> Rendered:
        if self._marked(conversation):
            ids, trained = self._by_markers(conversation)
            self._prove(conversation)
        else:
            text = self._text(conversation.messages, conversation.tools)
            layout = self._layout(conversation)
            spans = [self._turn(text, conversation, i, layout) for i in conversation.trained]
            ids, trained = self._tokens(text, spans)
        return Rendered(ids, trained, self._left_out(conversation, ids, trained))

    def ends_turns(self) -> bool:
        """Whether a special token that ends the turn is among the trained ones."""
        question = {"role": "user", "content": "?"}
        probe = self(Conversation((question, {"role": "assistant", "content": "!"})))
        last = [t for t, on in zip(probe.token_ids, probe.trained, strict=True) if on][-1]
        return self.tokenizer.decode([last]) in self._special

    def _left_out(self, conversation: Conversation, ids: list[int], trained: list[int]) -> int:
        """Thoughts that the template left out; left out tools or calls are an error."""
        answers = [conversation.messages[i] for i in conversation.trained]
        thoughts = sum(map(thinks, answers))
        called = [c["function"]["name"] for m in answers for c in m.get("tool_calls", ())]
        if not (thoughts or called or conversation.tools):
            return 0
        shown = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        written = [t for t, on in zip(ids, trained, strict=True) if on]
        said = str(self.tokenizer.decode(written, skip_special_tokens=False))
        offered = [tool.get("function", tool).get("name", "") for tool in conversation.tools]
        missing = [n for n in called if n not in said] + [n for n in offered if n not in shown]
        if missing:
            raise UsageError(f"the chat template does not show the tool {missing[0]!r}")
        return max(0, thoughts - said.count("</think>"))

    # text

    def _marked(self, conversation: Conversation) -> bool:
        """Markers know nothing of weights, and a kept thought may be one the template drops."""
        weighted = conversation.trained != conversation.answers
        marked = bool(_MARKERS.search(self._template(conversation.tools)))
        return marked and not weighted and self.thinking != "keep"

    def _template(self, tools: Sequence[Any]) -> str:
        return str(self.tokenizer.get_chat_template(tools=list(tools) or None))

    def _render(self, messages: Sequence[Message], tools: Sequence[Any], **more: Any) -> Any:
        """Raises UsageError with the template's own words and the conversation that caused them."""
        options: dict[str, Any] = {"tokenize": False, **self._variables, **more}
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, **options
            )
        except Exception as error:  # a template is a program of somebody else's
            roles = ", ".join(message["role"] for message in messages)
            shown = "; ".join(f"{m['role']}: {m['content']!r:.60}" for m in messages)
            raise UsageError(
                f"the chat template refuses this conversation ({roles}): {error}. It says {shown}"
            ) from error

    def _text(self, messages: Sequence[Message], tools: Sequence[Any]) -> str:
        kept = {i: with_thoughts(m) for i, m in enumerate(messages) if thinks(m)}
        if self.thinking != "keep" or not kept:
            return str(self._render(messages, tools))
        # What a template does not see it can't drop: the answer takes its sentinel's place later.
        marks = sentinels(messages)
        shown = [
            {**bare(m), "content": marks[i]} if i in kept else m for i, m in enumerate(messages)
        ]
        text = str(self._render(shown, tools))
        for i, said in kept.items():
            head, found, tail = text.partition(marks[i])
            if not found:
                raise UsageError(f"the chat template leaves out the text of message {i + 1}")
            if said.startswith("<think>"):
                head = _OPENED.sub("", head)
            text = head + said + tail
        return text

    # spans

    def _turn(self, text: str, conversation: Conversation, i: int, layout: Layout) -> Span:
        """Characters [start, end) of what the assistant writes in message ``i``."""
        messages, around = list(conversation.messages), layout.around[i]
        mark = sentinels(messages)[i]
        messages[i] = replaced(messages[i], mark, layout.calls)
        probe = self._text(messages, conversation.tools)
        if probe.count(mark) != 1:
            raise unsafe(f"message {i + 1} appears {probe.count(mark)} times in the rendering")
        head, tail = probe.split(mark)
        if not head.endswith(around.lead) or not tail.startswith(around.close):
            raise unsafe(f"what is written around message {i + 1} depends on what is said")
        before, after = head.removesuffix(around.lead), tail.removeprefix(around.close)
        start, end = len(before), len(text) - len(after)
        if not text.startswith(before) or not text.endswith(after) or start >= end:
            raise unsafe(f"what message {i + 1} says changes the text before or after its turn")
        return start, end

    def _layout(self, conversation: Conversation) -> Layout:
        key = shape(conversation)
        if key not in self._layouts:
            self._layouts[key] = _probed(self._find_layout, conversation)
        return self._layouts[key]

    def _find_layout(self, conversation: Conversation, calls: bool) -> Layout:
        messages, tools = conversation.messages, conversation.tools
        marks = sentinels(messages)
        shown = [replaced(m, mark, calls) for m, mark in zip(messages, marks, strict=True)]
        whole = str(self._render(shown, tools))
        around, spans = {}, []
        for i in conversation.answers:
            opening = self._opening(whole, shown, marks, i, tools)
            alone = str(self._render(shown[: i + 1], tools))
            tail, ending = (text_after(text, marks, i) for text in (whole, alone))
            close = self._close(tail, ending, bool(shown[i].get("tool_calls")))
            around[i] = Around(opening, close)
            start = whole.index(marks[i])
            spans.append((start - len(opening), start + len(marks[i]) + len(close)))
        self._check(whole, marks, conversation.answers, self._tokens(whole, spans)[1])
        return Layout(calls, around)

    def _opening(
        self, whole: str, shown: list[Message], marks: list[str], i: int, tools: Sequence[Any]
    ) -> str:
        """What stands between the generation prompt and answer ``i``."""
        prompt = str(self._render(shown[:i], tools, add_generation_prompt=True))
        between = text_after(whole, marks, i - 1).partition(marks[i])[0]
        header = common(between, text_after(prompt, marks, i - 1))
        lead = between[len(header) :]
        called = bool(shown[i].get("tool_calls"))
        if lead.strip() and not called and prompt == str(self._render(shown[:i], tools)):
            raise unsafe(
                f"it has no generation prompt (add_generation_prompt changes nothing), and writes "
                f"{lead!r} before an answer, which the model would have to write itself"
            )
        return lead

    def _close(self, tail: str, alone: str, called: bool) -> str:
        """What of the text after an answer ends its turn; ``alone`` is where it is the last one.

        The end token follows the text: it is the first special one, which may be another one in
        the middle of a conversation. Behind an argument of a call there may be others before it.
        """
        leading = [token for token in self._special if tail.startswith(token)]
        if leading and not called:
            return max(leading, key=len)
        same = common(tail, alone)
        find, choose = (same.rfind, max) if called else (same.find, min)
        places = [(find(token), token) for token in self._special if token in same]
        if not places:
            return same.rstrip()
        at, token = choose(places)
        return same[: at + len(token)]

    # tokens

    def _tokens(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[int]]:
        """Ids of the whole text, and 1 for those that lie inside one of the spans."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [0] * len(encoded["input_ids"])
        for start, end in spans:
            for t, (left, right) in enumerate(encoded["offset_mapping"]):
                if start <= left and right <= end and left < end:
                    inside[t] = 1
        return list(encoded["input_ids"]), inside

    def _by_markers(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        encoded = self._render(
            conversation.messages,
            conversation.tools,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return list(encoded["input_ids"]), list(encoded["assistant_masks"])

    # proof

    def _prove(self, conversation: Conversation) -> None:
        """That the markers enclose every answer and nobody else's text, for this order of roles."""
        key = shape(conversation)
        if key not in self._proven:
            _probed(self._prove_markers, conversation)
            self._proven.add(key)

    def _prove_markers(self, conversation: Conversation, calls: bool) -> None:
        marks = sentinels(conversation.messages)
        shown = tuple(
            replaced(m, mark, calls) for m, mark in zip(conversation.messages, marks, strict=True)
        )
        trained = self._by_markers(Conversation(shown, conversation.tools))[1]
        text = str(self._render(shown, conversation.tools))
        self._check(text, marks, conversation.answers, trained)

    def _check(
        self, text: str, marks: list[str], answers: Sequence[int], trained: list[int]
    ) -> None:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        for i, mark in enumerate(marks):
            start = text.find(mark)
            if start < 0 and i not in answers:
                continue  # a template may leave out a system message
            end = start + len(mark)
            own = [on for (a, b), on in zip(offsets, trained, strict=True) if a < end and b > start]
            if i in answers and not (start >= 0 and all(own)):
                raise unsafe(f"message {i + 1}, the assistant's, is not trained on whole")
            if i not in answers and any(own):
                raise unsafe(f"message {i + 1}, which is not the assistant's, is trained on")


T = TypeVar("T")


def _probed(attempt: Callable[[Conversation, bool], T], conversation: Conversation) -> T:
    """With sentinels for texts or, where the template wants calls before results, for calls."""
    try:
        return attempt(conversation, False)
    except UsageError:
        if not any(m.get("tool_calls") for m in conversation.messages):
            raise
        return attempt(conversation, True)


@lru_cache(maxsize=4)
def _renderer(tokenizer: Any, template: str) -> Renderer:
    del template  # part of the key: a tokenizer may be given another template
    return Renderer(tokenizer)


def render(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Token ids [T] of a conversation, and 1 [T] for those that the assistant writes."""
    rendered = _renderer(tokenizer, str(tokenizer.chat_template))(conversation)
    return rendered.token_ids, rendered.trained
