"""``posttrain rollout-server MODEL``: a vLLM server for runs whose orchestrator is elsewhere.

    POSTTRAIN_ROLLOUT_TOKEN=... posttrain rollout-server MODEL --host 10.0.0.2 --port 8000

Prints the URL, for ``rollout.urls``, when the server is ready; then keeps it alive until it is
interrupted. Whoever reaches the server can replace its weights: on any address but loopback it is
refused without a token. A server that ends, because a run asked it to start again or by itself, is
started again with the weights of MODEL, and the run brings it to the right ones; one that dies too
often ends the command.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.engines.server import ServerSpec, VllmServer

_LOOK_EVERY_S = 0.5
_MAX_RESTARTS = 5  # within the window
_WINDOW_S = 600.0


def add_parser(commands: Any) -> None:
    """The command's arguments; those of a job of the same name mean the same."""
    parser = commands.add_parser(
        "rollout-server", help="a vLLM server for a run on another machine (rollout.urls)"
    )
    parser.add_argument("model", help="checkpoint folder or hub name, of the run's architecture")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, printed in the URL")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--max-model-len", type=int, default=0, help="window in tokens")
    parser.add_argument("--max-concurrency", type=int, default=256, help="requests at once")
    parser.add_argument("--threads", type=int, default=0, help="on a CPU; 0: all cores")
    parser.add_argument("--kv-cache-gib", type=float, default=1.0)
    parser.add_argument("--lora-rank", type=int, default=0, help="of a run's learner.lora; 0: none")
    parser.add_argument("--transport", default="file", choices=("file", "nccl"))
    parser.add_argument("--startup-timeout", type=float, default=300.0, metavar="S")
    parser.add_argument("--log", type=Path, default=Path("rollout-server.log"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted; 0 then. Raises UsageError, RunError."""
    from posttrain.addresses import hold_port, is_loopback
    from posttrain.engines.server import SPOOL, TOKEN, check_installed
    from posttrain.errors import UsageError

    check_installed()
    if not is_loopback(options.host) and not os.environ.get(TOKEN):
        raise UsageError(
            f"--host {options.host} can be reached by others, and whoever reaches a rollout server "
            f"can replace its weights: set a secret in {TOKEN}, here and where the run is started "
            "(for example: export POSTTRAIN_ROLLOUT_TOKEN=$(openssl rand -hex 32)), or listen on "
            "127.0.0.1 and bring the port over ssh"
        )
    with (
        hold_port(options.host, options.port) as held,  # the same after a restart
        tempfile.TemporaryDirectory(prefix="posttrain-rollout-") as spool,
    ):
        spec = _spec(options, held.getsockname()[1])
        return asyncio.run(_serve(dataclasses.replace(spec, env={SPOOL: spool})))


def _spec(options: argparse.Namespace, port: int) -> ServerSpec:
    from posttrain.engines.server import ServerSpec, device_of_vllm
    from posttrain.engines.vllm_engine import limits_of

    return ServerSpec(
        model=options.model,
        log_path=options.log.resolve(),
        host=options.host,
        port=port,
        dtype=options.dtype,
        max_model_len=limits_of(options.model, options.max_model_len).window,
        max_num_seqs=options.max_concurrency,
        threads=options.threads or len(os.sched_getaffinity(0)),
        kv_cache_gib=options.kv_cache_gib,
        transport=options.transport,
        lora_rank=options.lora_rank,
        device=device_of_vllm(),
        startup_timeout_s=options.startup_timeout,
    )


async def _serve(spec: ServerSpec) -> int:
    from posttrain.engines.server import VllmServer
    from posttrain.errors import RunError

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, stop.set)
    started: list[float] = []
    while not stop.is_set():
        started = [t for t in started if time.monotonic() - t < _WINDOW_S] + [time.monotonic()]
        server = VllmServer(spec)
        if len(started) > 1 + _MAX_RESTARTS:
            raise RunError(f"the server ended {len(started) - 1} times in a row\n{server.tail()}")
        await _one_life(server, stop)
    return 0


async def _one_life(server: VllmServer, stop: asyncio.Event) -> None:
    """From start to end, its own or ours."""
    starting = asyncio.ensure_future(server.start())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return
        await starting
        print(server.url, flush=True)
        while server.alive() and not stop.is_set():
            await asyncio.wait({stopping}, timeout=_LOOK_EVERY_S)
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await server.stop()
