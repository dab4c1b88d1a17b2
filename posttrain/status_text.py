"""How ``posttrain status`` reads on a terminal; ``--json`` prints what it is made of."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.status import read_status

_REFRESH_S = 1.0
_LIVE = ("running", "silent")
_STEP = (("reward_mean", "reward {:.3f}"), ("accuracy", "correct {:.1%}"), ("loss", "loss {:.4f}"))
_TIMES = ("wait", "train", "sync", "evaluation", "total")


def show_status(run: Path, *, as_json: bool, watch: bool) -> int:
    """Print once, or until the run is over; ``watch`` clears a terminal in between."""
    while True:
        status = read_status(run)
        if watch and not as_json and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print(json.dumps(status) if as_json else render(status), flush=True)
        if not watch or status["state"] not in _LIVE:
            return 0
        time.sleep(_REFRESH_S)


def render(status: Mapping[str, Any]) -> str:
    """Lines for a person."""
    lines = [_headline(status), *_processes(status), *_waits(status), *_depths(status)]
    return "\n".join([*lines, *_last_step(status)])


def _headline(status: Mapping[str, Any]) -> str:
    why = f": {status['why']}" if status["why"] else ""
    text = f"{status['run_dir']} {_STATES[status['state']]}{why}"
    if status["resume"]:
        text += f"\n  go on from step {status['resume_step']} with: {status['resume']}"
    elif status["state"] == "silent":
        text += f"\n  last sign of life {_age(status['written_s_ago'])} ago; the waits are of then"
    return text


_STATES = {
    "running": "is running",
    "silent": "holds its lock and says nothing",
    "finished": "is finished",
    "stopped": "was stopped",
    "failed": "failed",
    "killed": "was killed",
}


def _processes(status: Mapping[str, Any]) -> list[str]:
    """All of a live run; of one that is over only what it left behind."""
    shown = [
        " ".join(str(word) for word in (one["name"], one["pid"], one["state"]) if word)
        for one in status["processes"]
        if status["state"] in _LIVE or one["state"] != "gone"
    ]
    return [f"  processes: {'; '.join(shown)}"] if shown else []


def _waits(status: Mapping[str, Any]) -> list[str]:
    if status["state"] not in _LIVE:
        return []
    if not status["waits"]:
        return ["  waiting for nothing: it computes"]
    rows = [("waiting for", "owner", "age", "deadline")]
    for wait in status["waits"]:
        name = wait["name"] if wait["count"] == 1 else f"{wait['count']} {wait['name']}"
        if wait["oldest"] != wait["name"]:
            name += f"; oldest: {wait['oldest']}"
        deadline = f"{wait['deadline_s']:g} s" if wait["deadline_s"] else "-"
        deadline += " OVERDUE" if wait["overdue"] else ""
        rows.append((name, wait["owner"], _age(wait["age_s"]), deadline))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _depths(status: Mapping[str, Any]) -> list[str]:
    lines = []
    if status["state"] in _LIVE:
        opened = [
            f"{one['step']} ({one['groups_finished']} of {one['groups']} groups finished)"
            for one in status["open_steps"]
        ]
        queued = status["requests_queued"]
        lines.append(
            f"  open steps: {', '.join(opened) or 'none with a finished group'}; requests in "
            f"flight: {status['requests_in_flight']}" + (f", queued: {queued}" if queued else "")
        )
        if status["full_steps"]:
            steps = ", ".join(map(str, status["full_steps"]))
            lines.append(f"  full, with the learner or waiting for it: {steps}")
        if (slow := status["slowest_request"]) is not None:
            where = f" at {slow['oldest_owner']}" if slow["oldest_owner"] else ""
            lines.append(f"  slowest: {slow['oldest']}{where}, {_age(slow['age_s'])}")
    version = status["weight_version"]
    lines.append(f"  committed weights: {'none yet' if version is None else version}")
    return lines


def _last_step(status: Mapping[str, Any]) -> list[str]:
    record = status["last_step"]
    if record is None:
        return [f"  no step of {status['steps']} is done"]
    parts = [form.format(record[key]) for key, form in _STEP if record.get(key) is not None]
    times = [
        f"{name} {record[f'time_{name}_s']:.2f} s" for name in _TIMES if f"time_{name}_s" in record
    ]
    idle = [
        f"{part} idle {record[f'{part}_idle_share']:.0%}"
        for part in ("engine", "learner")
        if f"{part}_idle_share" in record
    ]
    said = ", ".join([*parts, *times, *idle])
    return [f"  step {record['step'] + 1} of {status['steps']}: {said}"]


def _age(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes / 60:.1f} h"
