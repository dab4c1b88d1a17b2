"""``posttrain status RUN``: why is it waiting? Read from the run directory alone, live or over.

Decides what state a run is in. Alive is whoever holds the run's lock, which the kernel takes from a
dead process; where the lock can't tell (the run is another machine's), the sign of life in
status.json counts. A run that is not alive and did not write how it ended was killed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.storage.checkpoint import checkpoint_step, list_checkpoints
from posttrain.storage.run_dir import RunDir
from posttrain.storage.status_file import NAME, SIGN_OF_LIFE_S, process_state
from posttrain.waits import QUEUED, REQUESTS

_SILENT_S = 3 * SIGN_OF_LIFE_S
_TAIL_BYTES = 1 << 18  # of metrics.jsonl: the last records, however long the run is


def read_status(path: Path | str) -> dict[str, Any]:
    """All that is known of a run. Raises UsageError when ``path`` is not one."""
    run = RunDir.open(path)
    told = _read_json(run.path / NAME)
    now = time.time()
    state, why = _state(run, told, now)
    alive = state in ("running", "silent")
    waits = [_wait(one, now) for one in told.get("waits", ())] if alive else []
    records = _last_records(run.metrics_path)
    config = run.manifest()["config"]
    saved = list_checkpoints(run.checkpoints)
    return {
        "run_dir": str(run.path),
        "state": state,
        "why": why,
        "resume": "" if alive or state == "finished" else f"posttrain resume {run.path}",
        "resume_step": checkpoint_step(saved[-1]) if saved else 0,
        "steps": config["grpo"]["steps"],
        "written_s_ago": now - told["written"] if told else None,
        "processes": _processes(told),
        "waits": waits,
        "requests_in_flight": _count(waits, REQUESTS),
        "requests_queued": _count(waits, QUEUED),
        "slowest_request": next((w for w in waits if w["name"] == REQUESTS), None),
        "open_steps": _open_steps(run, config),
        "full_steps": _full_steps(run, records),
        "weight_version": records.get("sync", {}).get("version"),
        "last_step": records.get("step"),
    }


def _state(run: RunDir, told: Mapping[str, Any], now: float) -> tuple[str, str]:
    """(state, why): running, silent, finished, stopped, failed or killed."""
    here = told.get("host", socket.gethostname()) == socket.gethostname()
    held = run.lock.held_elsewhere() or (told.get("pid") == os.getpid() and run.lock.path.exists())
    ended = told.get("state", "running") != "running"
    if held and not ended:
        silent = now - told["written"] if told else 0.0
        stopped = bool(told) and process_state(told["pid"], told["birth"]) == "stopped"
        if stopped or silent > _SILENT_S:
            return "silent", "the orchestrator is stopped (SIGSTOP)" if stopped else ""
        return "running", ""
    if ended:
        return str(told["state"]), str(told.get("error", ""))
    if told and not here and now - told["written"] < _SILENT_S:
        return "running", f"on {told['host']}: its processes can't be seen from here"
    if (run.path / "summary.json").exists():
        return "finished", ""
    where = "" if here else f" (on {told['host']}; no sign of life from it)"
    return "killed", f"its process ended without a word{where}"


def _processes(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Orchestrator, ranks and servers, as this machine sees them."""
    if not told:
        return []
    own = {"pid": told["pid"], "birth": told["birth"]}
    here = told["host"] == socket.gethostname()
    found = []
    for name, process in {"orchestrator": own, **told.get("processes", {})}.items():
        pid = process["pid"]
        state = process_state(pid, process["birth"]) if here else f"on {told['host']}"
        found.append({"name": name, "pid": pid, "state": state})
        if name.endswith("(guard)"):  # the server itself is the guard's child
            children = _children(pid) if state != "gone" else []
            found += [
                {"name": name.removesuffix(" (guard)"), "pid": c, "state": process_state(c, 0)}
                for c in children
            ]
    for name, host in told.get("elsewhere", {}).items():
        found.append({"name": name, "pid": None, "state": f"on {host}"})
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _wait(told: Mapping[str, Any], now: float) -> dict[str, Any]:
    age = max(0.0, now - told["since"])
    return {**told, "age_s": age, "overdue": bool(told["deadline_s"]) and age > told["deadline_s"]}


def _count(waits: list[dict[str, Any]], name: str) -> int:
    return sum(wait["count"] for wait in waits if wait["name"] == name)


def _open_steps(run: RunDir, config: Mapping[str, Any]) -> list[dict[str, int]]:
    """Steps whose rollouts are being written, with the groups that are on disk."""
    groups = config["grpo"]["prompts_per_step"]
    found = []
    for step in run.rollouts.partial_steps():
        partial = run.rollouts.partial_path(step)
        done = partial.read_bytes().count(b"\n") if partial.exists() else 0
        found.append({"step": step, "groups_finished": done, "groups": groups})
    return found


def _full_steps(run: RunDir, records: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Steps whose rollouts are complete and that are not trained on, or just being it."""
    done = int(records.get("step", {}).get("step", -1))
    return [step for step in run.rollouts.sealed_steps() if step > done]


def _last_records(metrics: Path) -> dict[str, dict[str, Any]]:
    """The last record of each kind among the end of metrics.jsonl; canaries are no version."""
    if not metrics.exists():
        return {}
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
        lines = file.read().splitlines()
    found = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the first, cut by the seek, or one being written
        if isinstance(record, dict) and not record.get("canary"):
            found[str(record.get("kind"))] = record
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where the run is older than the file."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found
