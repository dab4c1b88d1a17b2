"""``types.Engine`` over one or more vLLM servers.

Decides that a ready server writes a completion (``routing`` says which), and that a failing one
costs time and no completion: its requests are sent again, with their seeds, to whichever
server is ready next. A monitor notices servers that die or hang while nobody asks them anything.

Completions are not bit-for-bit repeatable: vLLM's batches depend on timing, and in low precision a
sum depends on its batch. ``replays`` says so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from posttrain.config import GrpoConfig
from posttrain.engines.attached import AttachedServer
from posttrain.engines.client import ModelLimits, RequestTimedOut, ServerFailed
from posttrain.engines.replica import Quarantined, Replica, Server, State
from posttrain.engines.routing import OldestFirst, least_loaded
from posttrain.engines.server import (
    WORKER_EXTENSION,
    ServerSpec,
    VllmServer,
    check_installed,
    device_of_vllm,
)
from posttrain.engines.weight_sync import SyncRule
from posttrain.errors import RunError, UsageError
from posttrain.placement import LISTEN, only, placement_of
from posttrain.types import Completion, Floats, Ints, Request, Snapshot, SyncReport
from posttrain.waits import QUEUED, REQUESTS, waiting

_MONITOR_EVERY_S = 2.0
_ATTEMPTS = 10  # at one request; each is preceded by a wait for a ready server
_LONGEST_WINDOW = 4096  # tokens, where rollout.max_model_len is 0


class VllmEngine:
    """``start`` before use, ``close`` after. Raises UsageError where the settings can't work."""

    name = "vllm"
    replays = False

    def __init__(
        self,
        config: GrpoConfig,
        log_dir: Path,
        *,
        model: Path | None = None,
        worker_extension: str = WORKER_EXTENSION,
        max_restarts: int = 3,
        env: Mapping[str, str] | None = None,
    ) -> None:
        rollout = config.rollout
        self.limits = limits_of(config.model, rollout.max_model_len)
        self.transport = transport_of(config)  # "file" | "nccl": how the learner must publish
        self._rollout = rollout
        self._max_restarts = max_restarts  # of one server within ten minutes
        self._startup_timeout_s = config.grpo.startup_timeout_s
        self._slots = OldestFirst(rollout.max_concurrency)
        self._changed = asyncio.Event()
        rule = SyncRule(max_probe_gap=config.sync.max_probe_gap, timeout_s=config.sync.timeout_s)
        self._replicas = [
            Replica(
                server,
                limits=self.limits,
                rule=rule,
                max_restarts=max_restarts,
                on_change=self._note_change,
            )
            for server in _servers(
                config, log_dir, self.limits.window, worker_extension, env or {}, model
            )
        ]
        self._syncs = 0
        self._monitor: asyncio.Task[None] | None = None
        self._recoveries: dict[int, asyncio.Task[None]] = {}  # by position of the replica

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the servers listen now; a restarted one may listen elsewhere."""
        return tuple(replica.server.url for replica in self._replicas)

    @property
    def restarts(self) -> int:
        """Of all servers, since the engine was made."""
        return sum(replica.restarts for replica in self._replicas)

    @property
    def busy_s(self) -> float:
        return sum(replica.busy.seconds for replica in self._replicas) / len(self._replicas)

    async def start(self) -> None:
        """Start all servers at once. Raises RunError with the log of one that does not come up."""
        outcomes = await asyncio.gather(
            *(replica.start() for replica in self._replicas), return_exceptions=True
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            await self.close()
            raise failures[0]
        self._monitor = asyncio.create_task(self._watch(), name="vllm-monitor")

    def admit(self, episodes: int) -> None:
        """vLLM batches whatever there is; it waits for nobody."""

    def leave(self) -> None:
        """See ``admit``."""

    async def generate(self, request: Request) -> Completion:
        name, deadline_s = f"request {request.request_id}", self._rollout.request_timeout_s
        with waiting(name, owner="rollout.max_concurrency", many=QUEUED):
            await self._slots.acquire(request.step)
        try:
            for _ in range(_ATTEMPTS):
                replica = await self._ready_replica(name)
                seen = replica.restarts
                owner = replica.server.url
                try:
                    with waiting(name, deadline_s=deadline_s, owner=owner, many=REQUESTS):
                        return await replica.generate(request, deadline_s)
                except Quarantined:
                    continue
                except ServerFailed as failure:
                    await self._judge(replica, failure, seen)
        finally:
            self._slots.release()
        raise RunError(f"request {request.request_id} failed {_ATTEMPTS} times on healthy servers")

    async def logprobs(self, token_ids: Ints, temperature: float) -> Floats:
        for _ in range(_ATTEMPTS):
            replica = await self._ready_replica("log-probs of a sequence")
            seen = replica.restarts
            try:
                return await replica.logprobs(
                    token_ids, temperature, self._rollout.request_timeout_s
                )
            except ServerFailed as failure:
                await self._judge(replica, failure, seen)
        raise RunError(f"log-probs of a sequence failed {_ATTEMPTS} times on healthy servers")

    async def sync(self, snapshot: Snapshot) -> SyncReport:
        """One transaction on every server, all at once; RunError when one of them gives up."""
        started = asyncio.get_running_loop().time()
        before = self.restarts
        self._syncs += 1
        # The count makes the salt new even where a version is published twice.
        salt = f"{snapshot.version}.{self._syncs}"
        outcomes = await asyncio.gather(
            *(replica.sync(snapshot, salt) for replica in self._replicas), return_exceptions=True
        )
        gaps = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            gaps.append(outcome)
        return SyncReport(
            version=snapshot.version,
            seconds=asyncio.get_running_loop().time() - started,
            probe_gap=max(gaps),
            restarts=self.restarts - before,
        )

    async def close(self) -> None:
        """End the servers we started; twice is harmless."""
        tasks = [*self._recoveries.values(), *([self._monitor] if self._monitor else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas))

    async def _ready_replica(self, name: str) -> Replica:
        """The least loaded ready replica. Waits for one, as long as its restarts may take."""
        deadline = self._startup_timeout_s * (1 + self._max_restarts)
        try:
            async with asyncio.timeout(deadline):
                while (replica := self._least_loaded()) is None:
                    with waiting("a ready rollout server", deadline_s=deadline, owner=name):
                        await self._changed.wait()
                return replica
        except TimeoutError as error:
            raise RunError(f"{name}: no rollout server was ready within {deadline:g} s") from error

    def _least_loaded(self) -> Replica | None:
        for replica in self._replicas:
            if replica.error is not None:
                raise replica.error
        return least_loaded(r for r in self._replicas if r.state is State.READY)

    async def _judge(self, replica: Replica, failure: ServerFailed, seen_restarts: int) -> None:
        """After a failure: have the server restarted, or blame the request, or let it try again."""
        if replica.state is not State.READY or replica.restarts != seen_restarts:
            return
        fault = await replica.find_fault(failure)
        if fault is not None:
            self._recover_soon(replica, fault, seen_restarts)
        elif isinstance(failure, RequestTimedOut):
            raise RunError(
                f"{failure}, though the server is well: it is slower than "
                "rollout.request_timeout_s allows"
            ) from failure

    def _recover_soon(self, replica: Replica, reason: str, seen_restarts: int) -> None:
        replica.quarantine()
        index = self._replicas.index(replica)
        running = self._recoveries.get(index)
        if running is None or running.done():
            self._recoveries[index] = asyncio.create_task(
                self._recover(replica, reason, seen_restarts), name=f"recover-server-{index}"
            )

    async def _recover(self, replica: Replica, reason: str, seen_restarts: int) -> None:
        try:
            await replica.recover(reason, seen_restarts)
        except RunError:
            """Kept in ``replica.error``, which everybody who wants a server raises."""

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_MONITOR_EVERY_S)
            for replica in self._replicas:
                seen = replica.restarts
                if replica.state is not State.READY or await replica.is_well():
                    continue
                if replica.state is State.READY and replica.restarts == seen:
                    self._recover_soon(replica, "it died or stopped answering", seen)

    def _note_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _servers(
    config: GrpoConfig,
    log_dir: Path,
    window: int,
    worker_extension: str,
    env: Mapping[str, str],
    model: Path | None,
) -> list[Server]:
    rollout = config.rollout
    if rollout.urls:
        return [AttachedServer(url, config.grpo.startup_timeout_s) for url in rollout.urls]
    check_installed()
    lora, device = config.learner.lora, device_of_vllm()
    gpus = placement_of(config).servers if device == "cuda" else ()
    return [
        VllmServer(
            ServerSpec(
                model=config.model if model is None else str(model),
                log_path=log_dir / f"server-{index}.log",
                dtype=rollout.dtype,
                max_model_len=window,
                max_num_seqs=-(-rollout.max_concurrency // rollout.servers),
                threads=rollout.threads or threads_per_server(rollout.servers),
                kv_cache_gib=rollout.kv_cache_gib,
                transport=transport_of(config),
                lora_rank=lora.rank if lora is not None and lora.sync == "adapter" else 0,
                device=device,
                startup_timeout_s=config.grpo.startup_timeout_s,
                worker_extension=worker_extension,
                env={**(only(gpus[index]) if gpus else {}), **env},
            )
        )
        for index in range(rollout.servers)
    ]


def limits_of(model: str, max_model_len: int) -> ModelLimits:
    """The window is as asked, or the model's own, at most 4096 tokens."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as error:
        raise UsageError(f"model {model!r} is not a readable checkpoint: {error}") from error
    own = config.max_position_embeddings
    if max_model_len > own:
        raise UsageError(
            f"rollout.max_model_len is {max_model_len}, the window of {model} is {own} tokens"
        )
    return ModelLimits(max_model_len or min(own, _LONGEST_WINDOW), config.vocab_size)


def threads_per_server(count: int) -> int:
    """Half of the cores for all servers together; the learner has the other half."""
    return max(1, len(os.sched_getaffinity(0)) // (2 * count))


def transport_of(config: GrpoConfig) -> str:
    """Resolve "auto": NCCL where servers of ours and ranks here have a GPU each."""
    asked = config.sync.transport
    if config.learner.lora is not None and config.learner.lora.sync == "adapter":
        return "file"
    if config.rollout.urls:
        return "file" if asked == "auto" else asked
    if asked == "file":
        return asked
    possible = device_of_vllm() == "cuda" and placement_of(config).apart
    if asked == "nccl" and not possible:
        raise UsageError(
            "sync.transport is nccl, which needs a GPU for each rank (learner.ranks) and each "
            "server (rollout.servers), and vLLM for GPUs; use file"
        )
    elsewhere = bool(os.environ.get(LISTEN))  # the learner, which may have no GPU
    return "nccl" if asked == "nccl" or (possible and not elsewhere) else "file"
