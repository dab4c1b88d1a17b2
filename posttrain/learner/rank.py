"""One rank of the learner as a process of its own: takes commands over a socket until it closes.

    python -m posttrain.learner.rank --connect HOST:PORT [--log-folder FOLDER] [--model FOLDER]

One process of this module is one rank. A launcher that numbers processes (torchrun, DeepSpeed's)
says in the environment which is which; without one (``posttrain learner``) the orchestrator does.
The token in ``POSTTRAIN_LEARNER_TOKEN`` proves to the orchestrator that this is one of ours.

The first command places the rank, the second tells how to build the learner, each later one is a
command of it; each is answered (``rank_link``). Where the run directory is out of sight, files come
with a command and go with its answer, and lie in a temporary folder meanwhile.

A rank whose orchestrator is gone ends, also in the middle of a collective that will never return.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from posttrain.addresses import hold_port, split_address
from posttrain.learner.rank_link import connect, keep_alive, send, take

if TYPE_CHECKING:
    from io import BufferedRWPair

TOKEN = "POSTTRAIN_LEARNER_TOKEN"
WAIT_S = 600.0  # for the orchestrator to listen

Commands = dict[str, Callable[..., Any]]


def main() -> None:
    arguments = _arguments()
    if arguments.log_folder is not None:
        number = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
        _log_to(arguments.log_folder / f"learner-{number}.log")
    connection = connect(split_address(arguments.connect), WAIT_S)
    done = threading.Event()
    scratch = Path(tempfile.mkdtemp(prefix="posttrain-rank-"))
    threading.Thread(target=_end_with, args=(connection, scratch, done), daemon=True).start()
    meeting = hold_port(connection.getsockname()[0])  # for rank 0, where the others meet
    with connection, meeting, connection.makefile("rwb") as stream:
        try:
            send(stream, _hello(meeting.getsockname()[1]))
            _Service(stream, connection, scratch, arguments.model, done).run()
        except OSError as error:
            _end(f"the connection to the orchestrator broke ({error})", scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    # Not through interpreter shutdown: process groups of ranks that left already may block it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _hello(port: int) -> dict[str, Any]:
    """Who this is; numbers are the launcher's, null where there is none."""
    numbers = {name.lower(): os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    return {
        **{name: None if text is None else int(text) for name, text in numbers.items()},
        "local_rank": int(os.environ.get("LOCAL_RANK", "0")),
        "token": os.environ.get(TOKEN, ""),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "port": port,
    }


def _end_with(connection: socket.socket, scratch: Path, done: threading.Event) -> None:
    """End this process when the connection breaks; runs in a thread of its own."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)  # POLLHUP and POLLERR are always reported
    poll.poll()
    if not done.wait(1.0):  # the command loop may be ending by itself
        _end("the orchestrator is gone", scratch)


def _end(why: str, scratch: Path) -> NoReturn:
    print(f"{why}: this rank ends", file=sys.stderr, flush=True)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


class _Service:
    """Answers commands until ``close`` or the end of the stream; any error ends this rank."""

    def __init__(
        self,
        stream: BufferedRWPair,
        connection: socket.socket,
        scratch: Path,
        model: str | None,
        done: threading.Event,
    ) -> None:
        self._stream, self._connection, self._done = stream, connection, done
        self._scratch: Path | None = scratch  # None: the run directory is in sight
        self._model = model  # where this machine has it, if elsewhere than the orchestrator's
        self._commands: Commands = {"place": self._place, "build": self._build}

    def run(self) -> None:
        for line in self._stream:
            message = json.loads(line)
            if message["command"] == "close":
                self._done.set()
                send(self._stream, {"result": None})
                return
            try:
                self._answer(message)
            # A boundary: the orchestrator must hear why, whatever it was; this rank is unfit after.
            except Exception as error:  # noqa: BLE001
                traceback.print_exc()
                why = f"{type(error).__name__}: {error}"
                send(self._stream, {"error": why, "usage": _is_usage(error)})
                self._done.set()
                sys.exit(1)
        self._done.set()

    def _answer(self, message: dict[str, Any]) -> None:
        name, files = message.pop("command"), message.pop("files", ())
        if self._scratch is None or not ({"path", "folder"} & message.keys()):
            send(self._stream, {"result": self._commands[name](**message)})
            return
        scratch = self._scratch
        given = set(take(self._stream, files, scratch))
        for key in {"path", "folder"} & message.keys():
            message[key] = str(scratch / Path(message[key]).name)
        result = self._commands[name](**message)
        if name == "save":  # it goes on beside training where its files stay
            self._commands["written"]()
        if isinstance(result, dict) and result.get("path"):
            result["path"] = str(Path(result["path"]).relative_to(scratch))
        made = [file for file in scratch.rglob("*") if file.is_file() and file not in given]
        send(self._stream, {"result": result}, sorted(made), scratch)
        for entry in scratch.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _place(self, mark: str, variables: dict[str, str], silent_s: float) -> dict[str, bool]:
        """Take a place among the ranks; answers whether the run directory is in sight."""
        os.environ.update(variables)
        keep_alive(self._connection, silent_s)
        if os.access(mark, os.R_OK):
            self._scratch = None
        return {"sees_run": self._scratch is None}

    def _build(self, config: dict[str, Any], probe_ids: list[int], threads: int) -> None:
        if self._model is not None:
            config["model"] = self._model
        self._commands |= _learner_commands(config, probe_ids, threads or _share_of_cores())


def _learner_commands(config: dict[str, Any], probe_ids: list[int], threads: int) -> Commands:
    """The learner, built, and its commands as functions of JSON values."""
    import numpy as np
    import torch

    from posttrain.batching import load_batch
    from posttrain.config import GrpoConfig

    torch.set_num_threads(threads)
    from posttrain.learner.learner import RankLearner

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
        "written": learner.written,
        "load": lambda folder: learner.load(Path(folder)),
        "export": lambda folder: learner.export(Path(folder)),
    }


def _share_of_cores() -> int:
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


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
    parser = argparse.ArgumentParser(prog="python -m posttrain.learner.rank")
    parser.add_argument("--connect", required=True, metavar="HOST:PORT")
    parser.add_argument("--log-folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", metavar="FOLDER", help="where this machine has the checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
