"""``posttrain learner``: ranks of the learner on this machine, for an orchestrator on another one.

    POSTTRAIN_LEARNER_TOKEN=... posttrain learner --connect HOST:PORT --ranks 8

The same command on every machine; the orchestrator waits for ``learner.ranks`` of them in all,
numbers them and tells them where to meet. Under a launcher that numbers its processes (torchrun,
DeepSpeed's) start ``python -m posttrain.learner.rank`` instead.

It waits for the orchestrator to listen. The first rank that fails ends the others here, and every
rank ends with its orchestrator.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from posttrain.addresses import split_address
from posttrain.errors import RunError, UsageError
from posttrain.learner.rank import TOKEN, WAIT_S
from posttrain.learner.rank_link import connect

_LOOK_EVERY_S = 0.2
_END_TIMEOUT_S = 10.0
_SIOCGIFADDR = 0x8915  # the IPv4 address of an interface


def add_parser(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "learner", help="ranks of the learner for a run on another machine"
    )
    parser.add_argument(
        "--connect", required=True, metavar="HOST:PORT", help="the run's POSTTRAIN_LEARNER_LISTEN"
    )
    parser.add_argument("--ranks", type=int, default=1, help="on this machine: one for each GPU")
    parser.add_argument("--model", help="where the checkpoint is here, if not under the same path")
    parser.add_argument("--log-folder", type=Path, help="a log for each rank (default: printed)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Start the ranks and wait for their end: 0 when all ended well, else 1. Raises UsageError."""
    if not os.environ.get(TOKEN):
        raise UsageError(f"set {TOKEN} to the secret that the run was started with")
    try:
        address = split_address(options.connect)
    except ValueError as error:
        raise UsageError(f"--connect: {error}") from None
    if options.ranks < 1:
        raise UsageError(f"--ranks {options.ranks}: at least one")
    command = [sys.executable, "-m", "posttrain.learner.rank", "--connect", options.connect]
    command += ["--model", options.model] if options.model else []
    command += ["--log-folder", str(options.log_folder)] if options.log_folder else []
    try:
        found = _interface(address)
    except OSError as error:
        raise RunError(str(error)) from error
    environment = os.environ | {"LOCAL_WORLD_SIZE": str(options.ranks)} | found
    return _wait(
        [
            subprocess.Popen(command, env=environment | {"LOCAL_RANK": str(number)})
            for number in range(options.ranks)
        ]
    )


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Until all have ended; one that fails, or a signal to this process, ends the others."""
    asked = []
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda number, frame: asked.append(number))
    while any(rank.poll() is None for rank in ranks):
        if asked or any(rank.returncode for rank in ranks):
            _end(ranks)
        time.sleep(_LOOK_EVERY_S)
    return 1 if any(rank.returncode for rank in ranks) else 0


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + _END_TIMEOUT_S
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _interface(orchestrator: tuple[str, int]) -> dict[str, str]:
    """Have gloo and NCCL meet the other ranks on the network that leads to the orchestrator.

    By themselves they take the address that the machine's name resolves to, which on many systems
    is a loopback address. What the user has set stays; over loopback nothing is set.
    """
    with connect(orchestrator, WAIT_S) as connection:
        own = connection.getsockname()[0]
    name = next((name for _, name in socket.if_nameindex() if _address_of(name) == own), "")
    if not name or name == "lo":
        return {}
    wanted = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {variable: name for variable in wanted if variable not in os.environ}


def _address_of(interface: str) -> str:
    """Its IPv4 address, empty without one."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
