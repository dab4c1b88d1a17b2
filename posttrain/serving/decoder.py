"""Decides who computes when, where many users share the model of this process.

Requests that wait when there is room begin together, as a batch of their own; after their first
token they join the batch that is running. A newcomer therefore waits for one token of the others,
not for their ends, and a long answer holds nobody up. Rows are bounded, and so is the queue before
them: first come, first served. Where a model keeps more than keys and values of all tokens (sliding
windows, recurrent states), batches stay apart and advance in turn, which is right and slower.

Sampling beyond temperature (top-p, top-k) is for users; a rollout may not have it (``types``).
Log-probs are the model's own, at temperature 1, as vLLM's server gives them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.engines.embedded import DecodingBatch
from posttrain.types import Request
from posttrain.waits import REQUESTS, waiting

_BY_ROW = ("requests", "streams", "tokens", "logprobs", "uniforms")  # of a batch, one for each row


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion: what a rollout would ask for, and what only users do."""

    request: Request
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    n_alternatives: int = 0  # of each token, the likeliest to be told with their log-probs


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it was drawn."""

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...]  # the likeliest, best first
    last: bool
    stopped: bool  # by an end token; else the last one filled max_tokens


class QueueFull(Exception):
    """More requests wait than are let in."""


class Decoder:
    """Many streams of tokens from one transformers model. Lives in one event loop."""

    def __init__(self, model: Any, *, max_rows: int, max_queue: int = 1024) -> None:
        self._model = model
        self._max_rows, self._max_queue = max_rows, max_queue
        self._queue: deque[_Stream] = deque()
        self._batches: list[_UserBatch] = []
        self._running: asyncio.Task[None] | None = None

    async def stream(self, ask: Ask) -> AsyncIterator[Token]:
        """The tokens of one completion; leaving the iteration early frees its place.

        Raises QueueFull.
        """
        if len(self._queue) >= self._max_queue:
            raise QueueFull(f"{self._max_queue} requests are waiting already")
        mine = _Stream(ask)
        self._queue.append(mine)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), name="decoder")
        try:
            while True:
                with waiting(f"request {ask.request.request_id}", owner="decoder", many=REQUESTS):
                    token = await mine.tokens.get()
                if isinstance(token, BaseException):
                    raise token
                yield token
                if token.last:
                    return
        finally:
            mine.left = True

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        while self._batches or self._queue:
            self._begin_a_batch()
            for batch in self._batches:
                await asyncio.to_thread(batch.advance)
                for stream, token in batch.told:
                    stream.tokens.put_nowait(token)
            alive = [batch for batch in self._batches if batch.alive]
            try:
                self._batches = await asyncio.to_thread(_joined, alive)
            except Exception as error:  # noqa: BLE001 - boundary: nobody may wait for ever
                self._batches = []
                for stream in (batch.streams[row] for batch in alive for row in batch.rows):
                    stream.tokens.put_nowait(error)

    def _begin_a_batch(self) -> None:
        room = self._max_rows - sum(len(batch.rows) for batch in self._batches)
        chosen: list[_Stream] = []
        while self._queue and len(chosen) < room:
            stream = self._queue.popleft()
            if not stream.left:
                chosen.append(stream)
        if chosen:
            self._batches.append(_UserBatch(self._model, chosen))


@dataclass(slots=True)
class _Stream:
    """One who reads, and what was made for them."""

    ask: Ask
    tokens: asyncio.Queue[Token | BaseException] = field(default_factory=asyncio.Queue)
    left: bool = False  # nobody reads any more


class _UserBatch(DecodingBatch):
    """Rows decoded together, one step at a time, each with its own reader."""

    def __init__(self, model: Any, streams: list[_Stream]) -> None:
        super().__init__(model, [stream.ask.request for stream in streams])
        self.streams = streams
        self.told: list[tuple[_Stream, Token | BaseException]] = []  # by the last ``advance``
        asks = [stream.ask for stream in streams]
        self._top_p = torch.tensor([ask.top_p for ask in asks], device=model.device)
        self._top_k = torch.tensor([ask.top_k or 2**31 for ask in asks], device=model.device)
        self._n_alternatives = max(ask.n_alternatives for ask in asks)
        self._cut = any(ask.top_p < 1 or ask.top_k for ask in asks)
        self._likeliest: tuple[list[list[int]], list[list[float]]] = ([], [])

    @torch.inference_mode()
    def advance(self) -> None:
        """One token for each row. An error ends the whole batch and is told to its readers."""
        rows = list(self.rows)
        try:
            self.step()
        except Exception as error:  # noqa: BLE001 - boundary: the other batches go on
            self.told = [(self.streams[row], error) for row in rows]
            self.rows = []
            return
        self.told = [(self.streams[row], self._token(row, place)) for place, row in enumerate(rows)]

    @property
    def joinable(self) -> bool:
        """Whether its cache is nothing but keys and values of all tokens."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def join(self, other: _UserBatch) -> None:
        """Take over the rows of another batch, padded on the left to a common length."""
        width = max(self._forget_the_gone(), other._forget_the_gone())
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [_widened(getattr(one, name), width - 1, -2) for one in (mine, theirs)]
                setattr(mine, name, torch.cat(both))
        self.mask = torch.cat([_widened(one.mask, width, -1) for one in (self, other)])
        for name in ("ids", "positions", "temperatures", "_top_p", "_top_k"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        for name in _BY_ROW:
            setattr(self, name, [*getattr(self, name), *getattr(other, name)])
        self.rows = list(range(len(self.requests)))
        self._n_alternatives = max(self._n_alternatives, other._n_alternatives)
        self._cut = self._cut or other._cut

    def _forget_the_gone(self) -> int:
        """Drop ended rows, and the columns that no living one uses; the width that is left."""
        for name in _BY_ROW:
            values = getattr(self, name)
            setattr(self, name, [values[row] for row in self.rows])
        self._top_p, self._top_k = self._top_p[self.rows], self._top_k[self.rows]
        self.rows = list(range(len(self.rows)))
        empty = int((self.mask.cumsum(-1) == 0).all(0).sum())
        if empty:
            self.mask = self.mask[:, empty:]
            for layer in self.cache.layers:
                layer.keys = layer.keys[..., empty:, :]
                layer.values = layer.values[..., empty:, :]
        return self.mask.shape[-1]

    def _token(self, row: int, place: int) -> Token:
        stops = self.requests[row].sampling.stop_token_ids
        token_id = self.tokens[row][-1]
        n = self.streams[row].ask.n_alternatives
        ids, logprobs = self._likeliest
        return Token(
            token_id=token_id,
            logprob=self.logprobs[row][-1],
            alternatives=tuple(zip(ids[place][:n], logprobs[place][:n], strict=True)) if n else (),
            last=self._finished(row),
            stopped=token_id in stops,
        )

    def _finished(self, row: int) -> bool:
        return self.streams[row].left or super()._finished(row)

    def _sample(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.log_softmax(logits, -1)
        if self._n_alternatives:
            best = own.topk(min(self._n_alternatives, own.shape[-1]), dim=-1)
            self._likeliest = best.indices.tolist(), best.values.tolist()
        if self._cut:
            rows = torch.tensor(self.rows, device=logits.device)
            heat = self.temperatures.clamp(min=1e-6)[:, None]
            logits = cut(logits, heat, self._top_p[rows], self._top_k[rows])
        token, _ = super()._sample(logits)
        return token, own.gather(-1, token[:, None])[:, 0]


@torch.inference_mode()
def _joined(batches: list[_UserBatch]) -> list[_UserBatch]:
    """As few batches as their caches allow; all have written a token already."""
    apart = [batch for batch in batches if not batch.joinable]
    together = [batch for batch in batches if batch.joinable]
    for batch in together[1:]:
        together[0].join(batch)
    return [*together[:1], *apart]


def _widened(values: Tensor, width: int, dim: int) -> Tensor:
    """Zeros on the left of ``dim`` up to the width."""
    missing = width - values.shape[dim]
    if not missing:
        return values
    shape = list(values.shape)
    shape[dim] = missing
    return torch.cat([values.new_zeros(shape), values], dim)


def cut(logits: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Logits [B, V] with -inf outside the ``top_k`` likeliest and the nucleus of ``top_p``.

    The nucleus (Holtzman et al., arXiv:1904.09751) is the smallest set of likeliest tokens whose
    probability at the temperature reaches top_p; top-k is taken first, as vLLM does.
    """
    ranked, order = logits.sort(dim=-1, descending=True)
    place = torch.arange(logits.shape[-1], device=logits.device)
    ranked = ranked.masked_fill(place >= top_k[:, None], -torch.inf)
    shares = torch.softmax(ranked / temperature, -1)
    before = shares.cumsum(-1) - shares
    ranked = ranked.masked_fill(before >= top_p[:, None], -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, ranked)
