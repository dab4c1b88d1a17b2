"""The learner as the loop holds it: an asyncio object, with the ranks elsewhere.

``make_learner`` chooses by ``learner.ranks``:

1 or more one process per rank, one alone as plain Python, several under torchrun. They connect back
          over loopback and take one command at a time; each command has a name and a deadline, and
          goes to every rank, because every command is a collective. They run under
          ``process_guard`` in a session of their own: Ctrl-C does not reach them, and they end when
          this process ends, however that happens. The first failure of a rank ends all of them.
0         one rank in this process (``inline``).

Ranks on other machines: with ``POSTTRAIN_LEARNER_LISTEN=HOST:PORT`` nothing is started here; we
wait for ``learner.ranks`` ranks started elsewhere, by ``posttrain learner`` or a launcher, with the
same ``POSTTRAIN_LEARNER_TOKEN`` in their environment. A rank that does not see the run directory is
sent the files it reads, and sends back those it wrote (``rank_link``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain import waits
from posttrain.addresses import split_address
from posttrain.batching import save_batch
from posttrain.busy import Busy
from posttrain.config import GrpoConfig
from posttrain.errors import RunError, UsageError
from posttrain.learner.inline import InlineLearner
from posttrain.learner.rank import TOKEN
from posttrain.learner.rank_link import SILENT_S, RankFailed, RankLink, keep_alive
from posttrain.learner.rank_places import hosts_of, place
from posttrain.placement import LISTEN
from posttrain.process_guard import GUARD
from posttrain.shadowing import ROOT
from posttrain.storage.checked_files import all_written
from posttrain.types import Batch, Floats, Ints, Learner, Snapshot, StepResult
from posttrain.waits import waiting

_CLOSE_TIMEOUT_S = 10.0
_HELLO_TIMEOUT_S = 10.0
_LONGEST_LINE = 2**30  # bytes of one message
_TAIL_LINES = 25


def make_learner(config: GrpoConfig, probe_ids: Ints, run_dir: Path) -> Learner:
    """The learner of a run; nothing is started yet. Raises UsageError without DeepSpeed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UsageError(
            "the learner needs DeepSpeed, which is missing: pip install 'posttrain[deepspeed]'"
        )
    if config.learner.ranks:
        return ProcessLearner(config, probe_ids, run_dir)
    return InlineLearner(config, probe_ids)


def threads_per_rank(config: GrpoConfig) -> int:
    """CPU threads of one rank.

    Synchronous training alternates between engine and learner, so each may have every core;
    otherwise they work at once and the learner takes half.
    """
    if config.learner.threads:
        return config.learner.threads
    cores = len(os.sched_getaffinity(0))
    share = cores if config.grpo.max_lag == 0 else cores // 2
    return max(1, share // config.learner.world_size)


def _where_to_listen() -> tuple[str, int]:
    """For ranks started here, a free port of loopback. Raises UsageError."""
    asked = os.environ.get(LISTEN, "")
    if not asked:
        return "127.0.0.1", 0
    if not os.environ.get(TOKEN):
        raise UsageError(f"{LISTEN} is set and {TOKEN} is not: no rank could prove to be yours")
    try:
        return split_address(asked)
    except ValueError as error:
        raise UsageError(f"{LISTEN}: {error}") from None


class ProcessLearner:
    """Ranks in processes of their own."""

    def __init__(self, config: GrpoConfig, probe_ids: Ints, run_dir: Path) -> None:
        self._processes = config.learner.ranks
        self._config = config
        self._probe_ids = np.asarray(probe_ids, np.int64)
        self._run_dir = run_dir
        self._logs = run_dir / "logs"
        self._token = os.environ.get(TOKEN) or secrets.token_hex(16)
        self._elsewhere = bool(os.environ.get(LISTEN))  # the ranks are started there
        self._address = _where_to_listen()
        self._guard: subprocess.Popen[bytes] | None = None
        self._server: asyncio.Server | None = None
        self._ranks: list[RankLink] = []
        self._joined: asyncio.Queue[RankLink] = asyncio.Queue()
        self._turn = asyncio.Lock()  # one command at a time
        self._busy = Busy()
        self._failed = ""
        self._started = 0.0

    @property
    def busy_s(self) -> float:
        return self._busy.seconds

    @property
    def world_size(self) -> int:
        return self._processes // self._config.learner.sequence_parallel

    async def start(self) -> None:
        """Start the ranks and build the learner on them; returns when all are ready."""
        self._started = time.time()
        deadline = self._config.grpo.startup_timeout_s
        host, port = self._address
        self._server = await asyncio.start_server(self._accept, host, port, limit=_LONGEST_LINE)
        if not self._elsewhere:
            port = self._server.sockets[0].getsockname()[1]
            self._guard = await asyncio.to_thread(self._spawn, f"127.0.0.1:{port}")
        try:
            with waiting("learner, connect", deadline_s=deadline, owner="learner ranks"):
                await asyncio.wait_for(self._all_joined(), deadline)
        except TimeoutError:
            connected = ", ".join(rank.host for rank in self._ranks) or "none"
            raise await self._failure(
                f"learner: {len(self._ranks)} of {self._processes} ranks connected within "
                f"grpo.startup_timeout_s = {deadline:g}, to {host}:{port} and from: {connected}"
            ) from None
        await self._place_ranks(deadline)
        config = self._config.model_dump(mode="json")
        # A machine that is not this one divides its own cores.
        threads = self._config.learner.threads
        if not self._elsewhere:
            threads = threads_per_rank(self._config)
        await self._command(
            "build", deadline, config=config, probe_ids=self._probe_ids.tolist(), threads=threads
        )

    async def choices(self) -> dict[str, Any]:
        chosen: dict[str, Any] = (await self._command("choices"))[0]
        return chosen | {"ranks": self._processes}

    async def train(self, batch: Batch) -> StepResult:
        answers = await self._with_batch("train", batch)
        return StepResult(**answers[0])

    async def examine(self, batch: Batch, what: str) -> list[list[Floats]]:
        answers = await self._with_batch("examine", batch, what=what)
        each = self._config.learner.sequence_parallel  # say the same
        return [[np.array(row, np.float32) for row in rows] for rows in answers[::each]]

    async def _with_batch(self, name: str, batch: Batch, **payload: Any) -> list[Any]:
        """A command about a batch, which travels as a file."""
        if len(batch.rows) != self.world_size:
            raise ValueError(f"the batch is for {len(batch.rows)} ranks, not {self.world_size}")
        path = self._run_dir / "batches" / f"step-{batch.step:06d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(save_batch, batch, path)
        answers = await self._command(name, path=str(path.resolve()), **payload)
        path.unlink(missing_ok=True)
        return answers

    async def logprobs(self, sequences: Sequence[Ints], temperature: float) -> list[Floats]:
        ids = [np.asarray(sequence).tolist() for sequence in sequences]
        answers = await self._command("logprobs", sequences=ids, temperature=temperature)
        return [np.array(row, np.float32) for row in answers[0]]

    async def publish(self, version: int, folder: Path, *, perturb: float = 0.0) -> Snapshot:
        where = str(Path(folder).resolve())
        answers = await self._command("publish", version=version, folder=where, perturb=perturb)
        path = answers[0]["path"]
        if path is not None:  # of a rank that does not see the folder, relative to the one above
            path = Path(where).parent / path
        probe = np.array(answers[0]["probe_logprobs"], np.float32)
        return Snapshot(version, path, self._probe_ids, probe)

    async def attach(self, urls: Sequence[str]) -> None:
        """Publish over NCCL to the servers at ``urls`` from now on."""
        await self._command("attach", urls=list(urls))

    async def save(self, folder: Path) -> None:
        await self._command("save", folder=str(Path(folder).resolve()))

    async def saved(self, folder: Path) -> None:
        def gone() -> str:
            return self._failed or ("" if self._ranks else "the learner was closed")

        deadline_s = self._config.learner.step_timeout_s
        await all_written(Path(folder), self._processes, gone=gone, deadline_s=deadline_s)

    async def load(self, folder: Path) -> None:
        await self._command("load", folder=str(Path(folder).resolve()))

    async def export(self, folder: Path) -> None:
        await self._command("export", folder=str(Path(folder).resolve()))

    async def close(self) -> None:
        """End all ranks; no process is left. Twice is harmless."""
        if self._ranks and not self._failed:
            goodbye = asyncio.gather(*(rank.ask({"command": "close"}) for rank in self._ranks))
            # A rank that can't answer any more is ended below all the same.
            with contextlib.suppress(RankFailed, TimeoutError):
                await asyncio.wait_for(goodbye, _CLOSE_TIMEOUT_S)
        await self._end()

    # one command

    async def _command(self, name: str, deadline_s: float = 0.0, **payload: Any) -> list[Any]:
        """Every rank's answer to the same, by rank."""
        deadline_s = deadline_s or self._config.learner.step_timeout_s
        return await self._tell(name, deadline_s, [payload] * max(1, len(self._ranks)))

    async def _tell(
        self, name: str, deadline_s: float, payloads: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Every rank's answer, by rank. The first failure, or the deadline, ends all ranks."""
        async with self._turn:
            if self._failed or not self._ranks:
                raise RunError(f"learner, {name}: {self._failed or 'it has not been started'}")
            tasks = [
                asyncio.ensure_future(self._ask(rank, {"command": name, **payload}, deadline_s))
                for rank, payload in zip(self._ranks, payloads, strict=True)
            ]
            self._busy.note(True)
            try:
                return await asyncio.wait_for(asyncio.gather(*tasks), deadline_s)
            except TimeoutError:
                both = zip(self._ranks, tasks, strict=True)
                silent = [rank for rank, task in both if task.cancelled()]
                raise await self._failure(
                    f"learner, {name}: no answer from ranks {[rank.number for rank in silent]}"
                    f"{hosts_of(silent)} within {deadline_s:g} s"
                ) from None
            except RankFailed as failed:
                if failed.usage:
                    await self._end()
                    raise UsageError(failed.why) from None
                where = hosts_of([rank for rank in self._ranks if rank.number == failed.rank])
                what = f"learner, {name}: rank {failed.rank}{where} failed: {failed.why}"
                raise await self._failure(what, failed.rank) from None
            except asyncio.CancelledError:
                # The ranks are in the middle of something whose answer nobody will read.
                self._failed = f"cancelled during {name}"
                raise
            finally:
                self._busy.note(False)
                for task in tasks:
                    task.cancel()

    async def _ask(self, rank: RankLink, message: Mapping[str, Any], deadline_s: float) -> Any:
        name = f"learner, {message['command']}"
        with waiting(name, deadline_s=deadline_s, owner=rank.name):
            return await rank.ask(message)

    async def _failure(self, what: str, rank: int = 0) -> RunError:
        """Ends all ranks, and says why with the log's end and how to go on."""
        self._failed = what
        await self._end()
        hint = f"go on from the last checkpoint with: posttrain resume {self._run_dir}"
        return RunError(f"{what}\n{self._tail(rank)}\n{hint}")

    def _tail(self, rank: int) -> str:
        for path in (self._logs / f"learner-{rank}.log", self._logs / "learner-launch.log"):
            if path.is_file() and path.stat().st_size and path.stat().st_mtime >= self._started:
                with path.open(errors="replace") as log:
                    kept = deque(log, maxlen=_TAIL_LINES)
                return f"--- the end of {path}\n" + "".join(kept).rstrip()
        return f"(nothing new in the logs of rank {rank} in {self._logs})"

    # processes

    def _spawn(self, address: str) -> subprocess.Popen[bytes]:
        self._logs.mkdir(parents=True, exist_ok=True)
        module = ["-m", "posttrain.learner.rank", "--connect", address]
        module += ["--log-folder", str(self._logs)]  # --logs is torchrun's, abbreviated
        launcher = [sys.executable]
        if self._processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
            launcher += ["--nproc-per-node", str(self._processes)]
        with (self._logs / "learner-launch.log").open("ab") as log:
            return subprocess.Popen(
                [*GUARD, *launcher, *module],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        """The ranks' environment: their token, their threads, and where to find this package."""
        inherited = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
        return inherited | {
            TOKEN: self._token,
            "OMP_NUM_THREADS": str(threads_per_rank(self._config)),
            # A thread that waits for work sleeps: the engine shares these cores.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
            ),
        }

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _HELLO_TIMEOUT_S)
            hello = json.loads(line)
            known = hmac.compare_digest(str(hello["token"]).encode(), self._token.encode())
            number = -1 if hello["rank"] is None else int(hello["rank"])
        except (ValueError, KeyError, TypeError, TimeoutError, OSError):
            known = False
        if known:
            keep_alive(writer.get_extra_info("socket"), SILENT_S)
            self._joined.put_nowait(RankLink(number, hello, reader, writer))
        else:
            writer.close()  # not one of ours

    async def _all_joined(self) -> None:
        """Raises RunError as soon as the processes are gone without having connected."""
        while len(self._ranks) < self._processes:
            try:
                self._ranks.append(await asyncio.wait_for(self._joined.get(), 0.2))
            except TimeoutError:
                if self._guard is not None and self._guard.poll() is not None:
                    raise await self._failure("learner: its processes ended at once") from None

    async def _place_ranks(self, deadline_s: float) -> None:
        """Number the ranks where no launcher did, and learn which of them see the run directory."""
        try:
            variables = place(self._ranks)
        except UsageError:
            await self._end()
            raise
        self._ranks.sort(key=lambda rank: rank.number)
        for rank in self._ranks:
            if rank.host == socket.gethostname():  # a pid means something here only
                waits.started(rank.part, int(rank.hello["pid"]))
            else:
                waits.elsewhere(rank.part, rank.host)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        mark = self._run_dir.resolve() / f".seen-{secrets.token_hex(16)}"
        mark.touch()
        common = {"mark": str(mark), "silent_s": SILENT_S}
        try:
            answers = await self._tell(
                "place", deadline_s, [{**common, "variables": one} for one in variables]
            )
        finally:
            mark.unlink()
        for rank, answer in zip(self._ranks, answers, strict=True):
            rank.sees_run = answer["sees_run"]

    async def _end(self) -> None:
        for rank in self._ranks:
            rank.writer.close()
            waits.ended(rank.part)
        self._ranks = []
        if self._server is not None:
            self._server.close()
            self._server = None
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if guard.stdin is not None:
            guard.stdin.close()  # the guard ends the whole group
        try:
            await asyncio.to_thread(guard.wait, _CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(guard.pid, signal.SIGKILL)
            await asyncio.to_thread(guard.wait, _CLOSE_TIMEOUT_S)


# A user may have started us under a launcher; its ranks are not ours.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
