"""The engine for a machine without vLLM: batched, cached generation on transformers, in-process.

Decides how requests become batches. In *lockstep*: a batch starts when every admitted episode has
asked for tokens, and its rows are ordered by request id. The composition of a batch is then a
function of the work alone, never of timing, and generation replays bit for bit. A slow environment
holds the others up; vLLM does not have that price.

Sampling is inverse-CDF from uniforms drawn by each request's own generator, so that a sample's
randomness does not depend on its neighbours.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from posttrain.busy import Busy
from posttrain.errors import RunError
from posttrain.model.lora import load_adapter
from posttrain.types import (
    Completion,
    FinishReason,
    Floats,
    Ints,
    Request,
    Snapshot,
    SyncReport,
)
from posttrain.waits import REQUESTS, waiting

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class EmbeddedEngine:
    """``types.Engine`` on a transformers model in this process."""

    name = "embedded"
    transport = "file"
    urls: tuple[str, ...] = ()
    restarts = 0
    replays = True

    def __init__(
        self, model: str | Path, *, dtype: str, max_probe_gap: float, max_batch: int
    ) -> None:
        self._path = str(model)
        self._dtype = _DTYPES[dtype]
        self._max_gap = max_probe_gap
        self._max_batch = max_batch
        self._model: Any = None
        self._version = 0
        self._live = 0
        self._busy = Busy()
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._running: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()  # one user of the model at a time

    @property
    def busy_s(self) -> float:
        return self._busy.seconds

    async def start(self) -> None:
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(self._path, dtype=self._dtype)
        self._model = model.to(device).eval()

    def admit(self, episodes: int) -> None:
        self._live += episodes

    def leave(self) -> None:
        self._live -= 1
        self._start_batch_if_all_wait()

    async def generate(self, request: Request) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._start_batch_if_all_wait()
        name = f"request {request.request_id}"
        with waiting(name, owner="embedded engine", many=REQUESTS):
            return await future

    async def sync(self, snapshot: Snapshot) -> SyncReport:
        """Copy the snapshot's tensors in; refuses a snapshot that is not exactly this model's."""
        if snapshot.path is None:
            raise RunError(
                "the embedded engine takes weights from files, and the snapshot has none"
            )
        started = asyncio.get_running_loop().time()
        name = f"weight sync {snapshot.version}"
        async with self._lock:
            with waiting(f"{name}, load", owner="embedded engine"):
                await asyncio.to_thread(self._load, snapshot.path)
            with waiting(f"{name}, verify", owner="embedded engine"):
                probe = await asyncio.to_thread(self._logprobs, snapshot.probe_ids, 1.0)
            self._version = snapshot.version
        gap = float(np.abs(probe - snapshot.probe_logprobs).mean())
        limit = self._max_gap * snapshot.gap_allowance
        if not gap <= limit:
            raise RunError(
                f"weight sync {snapshot.version} was refused: the mean log-prob gap on the probe "
                f"is {gap:.4f}, the limit (sync.max_probe_gap) is {limit:g}"
            )
        seconds = asyncio.get_running_loop().time() - started
        return SyncReport(version=snapshot.version, seconds=seconds, probe_gap=gap)

    async def logprobs(self, token_ids: Ints, temperature: float) -> Floats:
        async with self._lock:
            return await asyncio.to_thread(self._logprobs, token_ids, temperature)

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
        self._model = None

    def _start_batch_if_all_wait(self) -> None:
        if self._waiting and len(self._waiting) >= self._live and self._running is None:
            batch = sorted(self._waiting, key=lambda pair: _order(pair[0].request_id))
            self._waiting = []
            self._running = asyncio.ensure_future(self._run(batch))
            self._running.add_done_callback(self._batch_done)

    def _batch_done(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if not task.cancelled() and task.exception() is None:
            self._start_batch_if_all_wait()

    async def _run(self, batch: list[tuple[Request, asyncio.Future[Completion]]]) -> None:
        for start in range(0, len(batch), self._max_batch):
            part = batch[start : start + self._max_batch]
            try:
                async with self._lock:
                    version = self._version
                    with self._busy:
                        requests = [request for request, _ in part]
                        made = await asyncio.to_thread(self._generate, requests, version)
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(RunError(f"embedded generation failed: {error!r}"))
                raise
            for (_, future), completion in zip(part, made, strict=True):
                if not future.done():  # its episode may have been cancelled meanwhile
                    future.set_result(completion)

    def _load(self, path: Path) -> None:
        if path.is_dir():
            load_adapter(self._model, path)
            return
        tensors = load_file(path)
        own = dict(self._model.named_parameters())
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())
            raise RunError(f"snapshot and model differ in {len(odd)} tensors, the first: {odd[:3]}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    @torch.inference_mode()
    def _logprobs(self, token_ids: Ints, temperature: float) -> Floats:
        ids = torch.from_numpy(token_ids).to(self._model.device)[None]
        logits = self._model(input_ids=ids, use_cache=False).logits[0, :-1].float() / temperature
        chosen = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]
        return chosen.cpu().numpy()

    @torch.inference_mode()
    def _generate(self, requests: list[Request], version: int) -> list[Completion]:
        batch = DecodingBatch(self._model, requests)
        while batch.alive:
            batch.step()
        return [batch.completion(i, version) for i in range(len(requests))]


def _order(request_id: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in request_id.split("-")]


class DecodingBatch:
    """Rows being decoded together. Prompts are padded on the left; a finished row is dropped from
    the cache, so that nothing is computed for it again."""

    def __init__(self, model: Any, requests: list[Request]) -> None:
        from transformers import DynamicCache

        self.model, self.requests = model, requests
        device, n = model.device, len(requests)
        lengths = torch.tensor([len(r.prompt_ids) for r in requests], device=device)
        width = int(lengths.max())
        self.ids = torch.zeros(n, width, dtype=torch.long, device=device)
        for row, request in enumerate(requests):
            self.ids[row, width - len(request.prompt_ids) :] = torch.from_numpy(request.prompt_ids)
        self.mask = (torch.arange(width, device=device) >= (width - lengths)[:, None]).long()
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=model.config)
        self.rows = list(range(n))  # which request each row of the cache belongs to
        self.uniforms = [_uniforms(request) for request in requests]
        self.temperatures = torch.tensor([r.sampling.temperature for r in requests], device=device)
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]

    @property
    def alive(self) -> bool:
        return bool(self.rows)

    def step(self) -> None:
        """One forward pass, one token for every living row."""
        logits = (
            self.model(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        token, logprob = self._sample(logits)
        for row, one, its_logprob in zip(self.rows, token.tolist(), logprob.tolist(), strict=True):
            self.tokens[row].append(one)
            self.logprobs[row].append(its_logprob)
        keep = [place for place, row in enumerate(self.rows) if not self._finished(row)]
        self._advance(token, keep)

    def completion(self, row: int, version: int) -> Completion:
        tokens = np.asarray(self.tokens[row], dtype=np.int64)
        stopped = int(tokens[-1]) in self.requests[row].sampling.stop_token_ids
        return Completion(
            token_ids=tokens,
            logprobs=np.asarray(self.logprobs[row], dtype=np.float32),
            weight_versions=np.full(len(tokens), version, dtype=np.int64),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
        )

    def _finished(self, row: int) -> bool:
        sampling, tokens = self.requests[row].sampling, self.tokens[row]
        return len(tokens) >= sampling.max_tokens or tokens[-1] in sampling.stop_token_ids

    def _sample(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        greedy = self.temperatures == 0
        logprobs = torch.log_softmax(
            logits / self.temperatures.masked_fill(greedy, 1.0)[:, None], -1
        )
        drawn = torch.tensor(
            [self.uniforms[row][len(self.tokens[row])] for row in self.rows],
            dtype=torch.float64,
            device=logits.device,
        )
        cdf = logprobs.double().exp().cumsum(-1)
        sampled = torch.searchsorted(cdf, (drawn * cdf[:, -1])[:, None], right=True)[:, 0]
        sampled = sampled.clamp(max=logits.shape[-1] - 1)
        token = torch.where(greedy, logprobs.argmax(-1), sampled)
        return token, logprobs.gather(-1, token[:, None])[:, 0]

    def _advance(self, token: torch.Tensor, keep: list[int]) -> None:
        if len(keep) < len(self.rows):
            self.rows = [self.rows[place] for place in keep]
            if not keep:
                return
            index = torch.tensor(keep, device=token.device)
            self.cache.batch_select_indices(index)
            token, self.mask = token[index], self.mask[index]
            self.positions, self.temperatures = self.positions[index], self.temperatures[index]
        self.ids = token[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], -1)
        self.positions = self.positions[:, -1:] + 1


def _uniforms(request: Request) -> list[float]:
    """One number in [0, 1) for each token that may be drawn."""
    return np.random.default_rng(request.seed).random(request.sampling.max_tokens).tolist()
