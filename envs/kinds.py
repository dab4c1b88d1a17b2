"""Environments over one's own data: dialogue, interpreter, search, workspace.

Each takes ``tasks``, which are rows, a data file or a data set, with ``options`` as ``envs.load``
does for data. What an episode does is in the module of that name (``envs.sessions`` for the
interpreter); they are imported when used, since schemas of tools take a while to make.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs import files
from envs.data import Columns, DataTasks
from envs.loading import load, register
from envs.protocol import Budget, Environment
from envs.single_turn import Episodes, SingleTurn
from rewards import UsageError

if TYPE_CHECKING:
    from rewards.sandbox import Sandbox


@register("dialogue")
def dialogue(
    tasks: Any,
    reward: Any,
    user: Mapping[str, Any],
    turns: int = 8,
    check: bool = True,
    **options: Any,
) -> Environment:
    """A conversation with a user whom a model plays; ``reward`` judges all of it.

    Rows have ``prompt`` (the user's first message), ``goal`` and perhaps ``persona``. ``user`` has
    ``url`` and ``model`` and what else ``envs.dialogue.SimulatedUser`` takes; ``turns`` are the
    policy's; ``check`` asks the server for its models first. Raises UsageError.
    """
    from envs.dialogue import Dialogue, SimulatedUser, check_goal
    from rewards.chat_server import check_server

    data = _data(tasks, reward, options, "dialogue")
    for task in data.tasks.every() if isinstance(data.tasks, DataTasks) else ():
        check_goal(task)
    try:
        simulator = SimulatedUser(**user)
    except TypeError as error:
        raise UsageError(f"dialogue: user: {error}") from None
    if check:
        check_server(simulator.url, simulator.model, simulator.api_key_env, "dialogue")
    name = f"dialogue:{data.name}"
    return Episodes(name, data.tasks, lambda: Dialogue(simulator, data.reward), Budget(turns=turns))


@register("interpreter")
def interpreter(
    tasks: Any,
    reward: Any,
    sandbox: str | Sandbox = "auto",
    call_s: float = 10.0,
    **options: Any,
) -> Environment:
    """Tasks to be solved with a Python interpreter and a shell; ``reward`` judges the answer.

    A column ``files`` holds what is in the folder at the start, path to text. ``call_s`` is the
    time of one call. Raises UsageError.
    """
    from envs.sessions import SessionEnv
    from rewards.sandbox import SessionLimits

    data = _data(tasks, reward, options, "interpreter")
    place, limits = _opened(sandbox), SessionLimits(call_s=call_s)
    name = f"interpreter:{data.name}"
    return Episodes(name, data.tasks, lambda: SessionEnv(place, limits, data.reward))


@register("search")
def search(
    tasks: Any, documents: Any, reward: Any, index: str | Path | None = None, **options: Any
) -> Environment:
    """Questions to be answered from ``documents``; ``reward`` judges the answer.

    ``documents`` are what ``envs.search.Index.build`` takes; ``index`` is a file to keep the index
    in, else it is made anew in memory. Raises UsageError.
    """
    from envs.search import Index, SearchEnv

    data = _data(tasks, reward, options, "search")
    built = Index.build(documents, index)
    return Episodes(f"search:{data.name}", data.tasks, lambda: SearchEnv(built, data.reward))


@register("workspace")
def workspace(
    tasks: Any,
    sandbox: str | Sandbox = "auto",
    call_s: float = 30.0,
    turns: int | None = None,
    seed: int = 0,
) -> Environment:
    """A folder with files, commands, and hidden tests at the end.

    ``tasks`` are rows, or a file of them, with ``prompt``, ``files`` and ``checks``
    (``envs.workspace``). ``turns`` bounds the replies of the model. A container serves one episode
    at a time: give Docker as many ``containers`` as there are episodes at once. Raises UsageError.
    """
    from envs.workspace import Workspace, check_row
    from rewards.sandbox import SessionLimits

    rows = files.read(str(tasks)) if isinstance(tasks, str | Path) else list(tasks)
    columns = Columns(required=("checks",), check=check_row)
    source = DataTasks(rows, name="workspace", columns=columns, seed=seed)
    place, limits = _opened(sandbox), SessionLimits(call_s=call_s)
    return Episodes("workspace", source, lambda: Workspace(place, limits), Budget(turns=turns))


def _data(tasks: Any, reward: Any, options: Mapping[str, Any], who: str) -> SingleTurn:
    data = load(tasks, reward=reward, **options)
    if not isinstance(data, SingleTurn):
        raise UsageError(f"{who}: tasks are rows, a data file or a data set, not an environment")
    return data


def _opened(sandbox: str | Sandbox) -> Sandbox:
    """The sandbox itself, or the one of that name; "auto" is opened once for all."""
    from rewards.code.scoring import default_sandbox
    from rewards.sandbox import load as load_sandbox

    if not isinstance(sandbox, str):
        return sandbox
    return default_sandbox() if sandbox == "auto" else load_sandbox(sandbox)
