"""Messages -> token ids, and back to text for people.

The first prompt of an episode is the chat template's rendering. Every later prompt *extends* the
ids that were sampled: only the new messages are rendered, and the assistant's turn is never
decoded and re-encoded. What the template writes between an assistant's end token and the next
message is found once, from the template itself.

Where an environment has tools, the template tells the model of them, and what the model writes is
read in the template's own format (``envs.tool_formats``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from envs import Message, ToolSpec
from envs.tool_formats import ToolFormat, format_of, parse
from posttrain.errors import UsageError
from posttrain.types import Ints

_ANSWER = "\N{BLACK SQUARE}"  # a stand-in for what an assistant wrote


class Chat:
    """A tokenizer with a chat template, as the loop needs it.

    Raises UsageError when the tokenizer has no chat template or no end token.
    """

    def __init__(self, tokenizer: Any, name: str = "the tokenizer") -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                f"{name} has no chat template, and the environment gives messages: "
                "set tokenizer.chat_template and save it with the checkpoint"
            )
        if tokenizer.eos_token_id is None:
            raise UsageError(f"{name} has no end-of-sequence token: generation would never stop")
        self.tokenizer = tokenizer
        opening: list[Message] = [{"role": "user", "content": "?"}]
        self._probe: list[Message] = [*opening, {"role": "assistant", "content": _ANSWER}]
        self._closed = self._render(self._probe, generate=False)
        self._closing = self._closed[self._closed.rindex(_ANSWER) + len(_ANSWER) :]
        closing_ids = self.encode(self._closing)
        special = set(tokenizer.all_special_ids)
        ends_turn = bool(closing_ids) and closing_ids[0] in special
        self._end_of_turn = closing_ids[0] if ends_turn else int(tokenizer.eos_token_id)
        self._name = name
        self._format = format_of(str(tokenizer.chat_template))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end a turn: the template's end of turn first, then the end of text."""
        return tuple(dict.fromkeys((self._end_of_turn, int(self.tokenizer.eos_token_id))))

    @property
    def tool_format(self) -> ToolFormat:
        """How tool calls are written. Raises UsageError when the template knows no tools."""
        if self._format is None:
            raise UsageError(
                f"the environment has tools, and the chat template of {self._name} does not tell "
                "the model of tools: use a checkpoint whose template does"
            )
        return self._format

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> Ints:
        """The conversation, ready for the assistant to write; [T]."""
        return np.asarray(self.encode(self._render(messages, tools=tools)), dtype=np.int64)

    def extend(
        self, prompt_ids: Ints, completion_ids: Ints, new_messages: Sequence[Message]
    ) -> Ints:
        """The next turn's prompt: prompt + completion as sampled + the rendered new messages."""
        probe = self._probe
        if any(message["role"] == "tool" for message in new_messages):
            probe = [*self._probe[:-1], _calling(new_messages)]
        before = self._render(probe, generate=False)
        after = self._render([*probe, *new_messages])
        if not after.startswith(before):
            raise UsageError(
                "the chat template rewrites an assistant's message once another follows it, "
                "so sampled tokens can't be kept: use a template that only appends"
            )
        new = self.encode(self._closing + after[len(before) :])
        if len(completion_ids) and int(completion_ids[-1]) == self._end_of_turn == new[0]:
            new = new[1:]  # the model wrote it itself
        return np.concatenate([prompt_ids, completion_ids, np.asarray(new, dtype=np.int64)])

    def reply(self, completion_ids: Ints, *, tools: bool = False) -> Message:
        """What the model wrote, as a message; with ``tools`` its calls are read from the text.

        ``tool_calls`` are in OpenAI's form, ``invalid_tool_calls`` say what could not be read.
        """
        if not tools:
            return {"role": "assistant", "content": self.decode(completion_ids)}
        ids = completion_ids.tolist()
        while ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        parsed = parse(str(self.tokenizer.decode(ids, skip_special_tokens=False)), self.tool_format)
        message: dict[str, Any] = {"role": "assistant", "content": parsed.text}
        if parsed.calls:
            message["tool_calls"] = [
                _as_openai(call.name, dict(call.arguments), number)
                for number, call in enumerate(parsed.calls)
            ]
        if parsed.invalid:
            message["invalid_tool_calls"] = list(parsed.invalid)
        return message

    def encode(self, text: str) -> list[int]:
        """Plain text, with no token added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Ints) -> str:
        """Text of a completion, without the end token."""
        return str(self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))

    def _render(
        self,
        messages: Sequence[Message],
        generate: bool = True,
        tools: Sequence[ToolSpec] = (),
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[tool.as_openai() for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=generate,
            )
        )


def _as_openai(name: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
    """A call; the id has nine characters, as Mistral's templates ask."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call{number:05d}", "type": "function", "function": function}


def _calling(results: Sequence[Message]) -> dict[str, Any]:
    """A stand-in for the assistant's message that these tool messages answer."""
    names = [str(m.get("name") or "tool") for m in results if m["role"] == "tool"]
    calls = [_as_openai(name, {}, number) for number, name in enumerate(names)]
    return {"role": "assistant", "content": _ANSWER, "tool_calls": calls}


def end_ids(tokenizer: Any, generation: Any) -> tuple[int, ...]:
    """The tokens that end an answer: the template's, the tokenizer's, the checkpoint's.

    ``generation``: the checkpoint's GenerationConfig.
    """
    try:
        template = Chat(tokenizer).stop_token_ids
    except UsageError:  # without a template only the end of text ends anything
        ended = tokenizer.eos_token_id
        template = () if ended is None else (int(ended),)
    named = generation.eos_token_id
    own = named if isinstance(named, list) else [] if named is None else [named]
    return tuple(dict.fromkeys((*template, *own)))
