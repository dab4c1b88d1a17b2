"""Decides where a checkpoint's files are: a folder, one GGUF file, or a name on the hub.

A name on the hub is fetched by huggingface_hub, into and from its cache. Whether the hub can be
reached is asked first and with a deadline, because a network that swallows packets would otherwise
hold the command for minutes; the transfers themselves are as long as they have to be. Where it
cannot be reached, or ``HF_HUB_OFFLINE`` is set, a copy in the cache is taken.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import RunError, UsageError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# No scripts: nothing from the hub is run.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.md", "LICENSE*", "NOTICE*"]
_PICKLES = ["*.bin"]


@dataclass(frozen=True, slots=True)
class Source:
    """A folder on this machine. ``gguf`` is a file's name in it, where the weights are that."""

    name: str  # as the user gave it
    folder: Path
    gguf: str = ""


def locate(
    name: str, *, revision: str | None = None, allow_pickle: bool = False, deadline_s: float = 30.0
) -> Source:
    """Find or fetch it. Raises UsageError where there is no such thing, RunError where the hub
    does not answer within ``deadline_s``.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"{name} is a file: give the checkpoint's folder, or a .gguf file")
        return Source(name, path.parent, path.name)
    if path.is_dir():
        return _folder(name, path)
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise UsageError(f"{name}: no such folder, and no name on the hub (owner/name)")
    return _folder(name, _fetched(name, revision, allow_pickle, deadline_s))


def _folder(name: str, path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(name, path)
    quantised = sorted(file.name for file in path.glob("*.gguf"))
    if len(quantised) == 1:
        return Source(name, path, quantised[0])
    if quantised:
        raise UsageError(f"{name} has several GGUF files, name one: {', '.join(quantised)}")
    raise UsageError(f"{name} has no config.json: it is no checkpoint folder")


def _fetched(name: str, revision: str | None, allow_pickle: bool, deadline_s: float) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [*_WANTED, *(_PICKLES if allow_pickle else [])]
    endpoint = os.environ.get("HF_ENDPOINT") or None
    problem = _hub_problem(name, revision, endpoint, deadline_s)
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=wanted,
            endpoint=endpoint,
            local_files_only=bool(problem),
        )
    except LocalEntryNotFoundError as error:
        raise RunError(
            f"{name} is no folder here, and the hub cannot be asked for it ({problem or error}); "
            "it is not in the cache either. Download it elsewhere and give the folder"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise RunError(
            f"{name}: the download stopped ({error}); what has come is kept in the cache: run the "
            "command again"
        ) from error
    return Path(folder)


def _hub_problem(name: str, revision: str | None, endpoint: str | None, deadline_s: float) -> str:
    """Why the hub cannot be used, or "". Raises UsageError where it answers that there is none."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    answers: list[Exception | None] = []
    asking = threading.Thread(
        target=_ask, args=(answers, name, revision, endpoint, deadline_s), daemon=True
    )
    asking.start()
    asking.join(deadline_s)
    if not answers:
        return f"no answer within {deadline_s:g} s"
    problem = answers[0]
    if isinstance(problem, UsageError):
        raise problem
    return "" if problem is None else f"{type(problem).__name__}: {problem}".splitlines()[0]


def _ask(
    answers: list[Exception | None],
    name: str,
    revision: str | None,
    endpoint: str | None,
    deadline_s: float,
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi(endpoint=endpoint).model_info(name, revision=revision, timeout=deadline_s)
        answers.append(None)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f" at {revision}" if isinstance(error, RevisionNotFoundError) else ""
        answers.append(
            UsageError(f"the hub has no model {name}{what}, or it needs a login (hf auth login)")
        )
    except Exception as error:  # noqa: BLE001  a thread's boundary: the caller reads what it was
        answers.append(error)
