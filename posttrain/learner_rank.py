"""One rank of the learner as a process of its own: takes commands over a socket until it closes.

    python -m posttrain.learner_rank --connect HOST:PORT [--log-folder FOLDER]

One process of this module is one rank; several are started by torchrun, whose environment says
which is which. The token in ``POSTTRAIN_LEARNER_TOKEN`` proves to the orchestrator that it is one
of ours. Messages are JSON, one a line: the first tells how to build the learner, each later one is
a command, each is answered. Batches come as files, whose paths must mean the same here as there.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import BufferedRWPair

TOKEN = "POSTTRAIN_LEARNER_TOKEN"
_CONNECT_TIMEOUT_S = 60.0

Commands = dict[str, Callable[..., Any]]


def main() -> None:
    arguments = _arguments()
    rank = int(os.environ.get("RANK", "0"))
    if arguments.log_folder is not None:
        _log_to(arguments.log_folder / f"learner-{rank}.log")
    host, _, port = arguments.connect.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S)
    connection.settimeout(None)  # commands may be hours apart; the end of the stream ends us
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rwb") as stream:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        who = {"rank": rank, "world_size": world_size, "token": os.environ.get(TOKEN, "")}
        _send(stream, who | {"pid": os.getpid(), "host": socket.gethostname()})
        serve(stream)
    # Not through interpreter shutdown: process groups of ranks that left already may block it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def serve(stream: BufferedRWPair) -> None:
    """Answer commands until ``close`` or the end of the stream; any error ends this rank."""
    commands: Commands = {"build": lambda **payload: commands.update(_build(**payload))}
    for line in stream:
        message = json.loads(line)
        name = message.pop("command")
        if name == "close":
            _send(stream, {"result": None})
            return
        try:
            result = commands[name](**message)
        # A boundary: the orchestrator must hear why, whatever it was; this rank is unfit after it.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            _send(stream, {"error": f"{type(error).__name__}: {error}", "usage": _is_usage(error)})
            sys.exit(1)
        _send(stream, {"result": result})


def _build(config: dict[str, Any], probe_ids: list[int], threads: int) -> Commands:
    """The learner, and its commands as functions of JSON values."""
    import numpy as np
    import torch

    from posttrain.batching import load_batch
    from posttrain.config import GrpoConfig

    torch.set_num_threads(threads)
    from posttrain.learner import RankLearner

    learner = RankLearner(GrpoConfig.model_validate(config), np.array(probe_ids, np.int64))

    def train(path: str) -> dict[str, Any]:
        batch = load_batch(Path(path), only_rank=learner.row_rank)
        result = learner.train(batch)
        return {"metrics": dict(result.metrics), "skipped": result.skipped, "reason": result.reason}

    def examine(path: str, what: str) -> list[list[float]]:
        batch = load_batch(Path(path), only_rank=learner.row_rank)
        return [row.tolist() for row in learner.examine(batch, what)]

    def logprobs(sequences: list[list[int]], temperature: float) -> list[list[float]]:
        found = learner.logprobs([np.array(ids, np.int64) for ids in sequences], temperature)
        return [row.tolist() for row in found] if learner.rank == 0 else []

    def publish(version: int, folder: str, perturb: float) -> dict[str, Any]:
        snapshot = learner.publish(version, Path(folder), perturb)
        path = None if snapshot.path is None else str(snapshot.path)
        return {"path": path, "probe_logprobs": snapshot.probe_logprobs.tolist()}

    return {
        "choices": learner.choices,
        "train": train,
        "examine": examine,
        "logprobs": logprobs,
        "publish": publish,
        "attach": learner.attach,
        "save": lambda folder: learner.save(Path(folder)),
        "load": lambda folder: learner.load(Path(folder)),
        "export": lambda folder: learner.export(Path(folder)),
    }


def _send(stream: BufferedRWPair, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _is_usage(error: Exception) -> bool:
    from posttrain.errors import UsageError

    return isinstance(error, UsageError)


def _log_to(path: Path) -> None:
    """Everything this process prints, from C++ as well, goes to the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m posttrain.learner_rank")
    parser.add_argument("--connect", required=True, metavar="HOST:PORT")
    parser.add_argument("--log-folder", type=Path, metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    main()
