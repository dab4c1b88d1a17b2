"""From a request to pieces of answers: prompt, stop conditions, sampling; and the model's defaults.

Decides what a request leaves open. Temperature, top-p and top-k are the checkpoint's own
(generation_config.json), as in vLLM; the end tokens are the template's and the checkpoint's; a seed
that was not given is drawn. A prompt that leaves no room in the window is refused.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.chat import Chat, end_ids
from posttrain.errors import UsageError
from posttrain.export.checkpoint import load_model, load_tokenizer
from posttrain.serving.answers import Answer, Piece
from posttrain.serving.decoder import Ask, Decoder
from posttrain.serving.protocol import ChatRequest, RequestError, TextRequest
from posttrain.serving.text import TextStream
from posttrain.types import Ints, Request, Sampling

_DEFAULT_TEXT_TOKENS = 16  # OpenAI's, where /v1/completions names no max_tokens
_NOT_APPLIED = {"repetition_penalty": 1.0, "min_p": 0.0, "typical_p": 1.0}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the checkpoint says where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    not_applied: tuple[str, ...] = ()  # what it asks for and does not get

    @classmethod
    def of(cls, generation: Any) -> Defaults:
        """From a transformers GenerationConfig; a field that was not set is None there."""
        odd = [
            f"{name}={value}"
            for name, neutral in _NOT_APPLIED.items()
            if (value := getattr(generation, name, None)) not in (None, neutral)
        ]
        return cls(
            temperature=_or(generation.temperature, 1.0),
            top_p=_or(generation.top_p, 1.0),
            top_k=_or(generation.top_k, 0),
            not_applied=tuple(odd),
        )


class Service:
    """A model for its users, by the name they ask for."""

    def __init__(self, model: Any, tokenizer: Any, name: str, *, window: int, rows: int) -> None:
        self.name = name
        self.window = window
        self.defaults = Defaults.of(model.generation_config)
        self.decoder = Decoder(model, max_rows=rows)
        self._tokenizer = tokenizer
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        self._numbers = itertools.count()
        self._chat: Chat | None = None
        try:
            self._chat = Chat(tokenizer, name)
        except UsageError as reason:
            self._no_chat = str(reason)
        self._ends = end_ids(tokenizer, model.generation_config)

    def answer(self, request: ChatRequest | TextRequest) -> tuple[Answer, list[Ask]]:
        """An answer to be filled, and what is asked of the model for it. Raises RequestError."""
        if request.model != self.name:
            raise RequestError(
                404, f"the model {request.model!r} is not served here; {self.name!r} is", "model"
            )
        prompts = self._prompts(request)
        answer = Answer(
            chat=isinstance(request, ChatRequest),
            model=self.name,
            wants_logprobs=request.wants_logprobs,
            wants_ids=request.return_token_ids,
            spell=self._spell,
            prompt_tokens=sum(len(prompt) for prompt in prompts),
        )
        return answer, [
            self._ask(request, prompt, i) for prompt in prompts for i in range(request.n)
        ]

    async def pieces(
        self, request: ChatRequest | TextRequest, answer: Answer, asks: list[Ask]
    ) -> AsyncIterator[Piece]:
        """The pieces of all choices, as they come. Leaving early ends their computation."""
        ready: asyncio.Queue[Piece | BaseException] = asyncio.Queue()

        async def read(choice: int) -> None:
            try:
                async for piece in self._choice(choice, asks[choice], request.stop):
                    ready.put_nowait(piece)
            except Exception as error:  # noqa: BLE001 - handed to the one who reads
                ready.put_nowait(error)

        readers = [asyncio.create_task(read(choice)) for choice in range(len(asks))]
        try:
            open_choices = len(asks)
            while open_choices:
                piece = await ready.get()
                if isinstance(piece, BaseException):
                    raise piece
                answer.completion_tokens += 1
                open_choices -= piece.finish_reason is not None
                yield piece
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _choice(self, choice: int, ask: Ask, stops: list[str]) -> AsyncIterator[Piece]:
        text = TextStream(self._tokenizer, stops)
        tokens = self.decoder.stream(ask)
        try:
            async for token in tokens:
                new = "" if token.stopped else text.push(token.token_id)
                if token.last:
                    new += text.end()
                over = "stop" if text.stopped or token.stopped else "length" if token.last else None
                yield Piece(choice, new, token, over)
                if over:
                    return
        finally:
            await tokens.aclose()  # type: ignore[attr-defined]

    # requests

    def _ask(self, request: ChatRequest | TextRequest, prompt: Ints, choice: int) -> Ask:
        room = self.window - len(prompt)
        wanted = request.max_tokens
        if isinstance(request, ChatRequest):
            wanted = request.max_completion_tokens or wanted or room
        wanted = wanted or _DEFAULT_TEXT_TOKENS
        seed = secrets.randbits(63) if request.seed is None else request.seed % 2**63
        temperature, defaults = request.temperature, self.defaults
        return Ask(
            request=Request(
                request_id=str(next(self._numbers)),
                prompt_ids=prompt,
                sampling=Sampling(
                    max_tokens=min(wanted, room),
                    temperature=defaults.temperature if temperature is None else temperature,
                    stop_token_ids=self._ends,
                ),
                seed=(seed + choice) % 2**63,
            ),
            top_p=defaults.top_p if request.top_p is None else request.top_p,
            top_k=max(0, defaults.top_k if request.top_k is None else request.top_k),
            n_alternatives=request.n_alternatives,
        )

    def _prompts(self, request: ChatRequest | TextRequest) -> list[Ints]:
        if isinstance(request, ChatRequest):
            prompts = [self._rendered(request)]
            field = "messages"
        else:
            given = request.prompt
            several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
            prompts = [self._ids(one) for one in (given if several else [given])]  # type: ignore[union-attr]
            field = "prompt"
        for prompt in prompts:
            self._check(prompt, field)
        return prompts

    def _rendered(self, request: ChatRequest) -> Ints:
        if self._chat is None:
            raise RequestError(400, f"{self._no_chat}. Use /v1/completions", "messages")
        messages = [{"role": one.role, "content": one.text} for one in request.messages]
        try:
            return self._chat.prompt_ids(messages)  # type: ignore[arg-type]
        except Exception as error:  # boundary: the template is the model's code
            raise RequestError(
                400, f"messages: the model's chat template refuses them: {error}", "messages"
            ) from error

    def _ids(self, prompt: Any) -> Ints:
        if isinstance(prompt, str):
            prompt = self._tokenizer.encode(prompt)
        return np.asarray(prompt, dtype=np.int64)

    def _check(self, prompt: Ints, field: str) -> None:
        if len(prompt) == 0:
            raise RequestError(400, f"{field} is empty", field)
        if prompt.min() < 0 or prompt.max() >= self._vocabulary:
            raise RequestError(
                400, f"{field}: a token id is not one of the model's {self._vocabulary}", field
            )
        if len(prompt) >= self.window:
            raise RequestError(
                400,
                f"{field}: {len(prompt)} tokens leave no room for an answer in the model's "
                f"window of {self.window}",
                field,
            )

    def _spell(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))


def load_service(
    checkpoint: str | Path, *, name: str, dtype: str, window: int, rows: int
) -> Service:
    """Load a checkpoint for its users. ``dtype`` "auto" is the checkpoint's own."""
    tokenizer = load_tokenizer(checkpoint)
    return Service(load_model(checkpoint, dtype), tokenizer, name, window=window, rows=rows)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
