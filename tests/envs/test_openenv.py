"""A real OpenEnv server on loopback: episodes over its websocket, and sessions that end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import envs
from envs.adapters.openenv import load_openenv
from rewards import Outcome, UsageError
from tests.envs.episodes import play, played

server_parts = pytest.importorskip("openenv.core.env_server")
import uvicorn  # noqa: E402

OPEN: list[Any] = []  # sessions that the server holds


class Say(server_parts.Action):
    text: str


class Seen(server_parts.Observation):
    text: str


class Countdown(server_parts.Environment):
    """From a number given by the seed down to 0; each right answer is worth a third."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        OPEN.append(self)

    def reset(self, seed: int | None = None, **kwargs: Any) -> Seen:
        self.wanted = int(seed or 0) % 100
        self.left = 3
        return Seen(text=f"Say {self.wanted}.")

    def step(self, action: Say, **kwargs: Any) -> Seen:
        if action.text == "crash":
            raise ZeroDivisionError("mine")
        if action.text == "hang":
            time.sleep(1.0)
        self.left -= 1
        right = action.text == str(self.wanted)
        return Seen(text=f"{self.left} left", reward=right / 3, done=self.left == 0)

    @property
    def state(self) -> Any:
        return server_parts.State()

    def close(self) -> None:
        OPEN.remove(self)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = server_parts.create_fastapi_app(Countdown, Say, Seen, max_concurrent_envs=64)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def sessions_end() -> bool:
    deadline = time.monotonic() + 60
    while OPEN and time.monotonic() < deadline:
        time.sleep(0.02)
    return not OPEN


def gold(environment: envs.Environment, index: int = 0) -> tuple[envs.Task, str]:
    task = environment.tasks.train(index)
    return task, str(task.columns["seed"] % 100)


def test_an_episode_over_the_websocket(url: str) -> None:
    environment = envs.load(f"openenv:{url}", system_prompt="Count.")
    task, right = gold(environment)
    messages, score = play(environment, [right] * 3, task)
    shown = [m["content"] for m in messages if m["role"] != "assistant"]
    assert shown == ["Count.", f"Say {right}.", "2 left", "1 left"]
    assert (score.value, score.outcome) == (pytest.approx(1.0), Outcome.CORRECT)
    messages, score = play(environment, [right, "x", "x"], task)
    assert (score.value, score.outcome) == (pytest.approx(1 / 3), Outcome.WRONG)
    assert sessions_end()


def test_training_and_held_out_episodes_have_seeds_of_their_own(url: str) -> None:
    tasks = load_openenv(url).tasks
    aside = {task.columns["seed"] for task in tasks.held_out(20)}
    trained = {tasks.train(i).columns["seed"] for i in range(200)}
    assert (len(aside), len(trained), aside & trained) == (20, 200, set())


def test_many_sessions_at_once_stay_apart(url: str) -> None:
    environment = load_openenv(url)

    async def together() -> list[float]:
        pairs = [gold(environment, i) for i in range(12)]
        found = await asyncio.gather(*(played(environment, t, [r] * 3) for t, r in pairs))
        return [score.value for _, score in found]  # type: ignore[union-attr, misc]

    assert asyncio.run(together()) == [pytest.approx(1.0)] * 12
    assert sessions_end()


def test_a_session_ends_when_the_server_raises(url: str) -> None:
    with pytest.raises(RuntimeError, match="EXECUTION_ERROR"):
        play(load_openenv(url), ["crash"])
    assert sessions_end()


def test_a_session_ends_when_a_step_is_too_slow(url: str) -> None:
    with pytest.raises(TimeoutError):
        play(load_openenv(url, timeout_s=0.3), ["hang"])
    assert sessions_end()


def test_a_session_ends_when_the_episode_is_cancelled(url: str) -> None:
    environment = load_openenv(url)

    async def cancelled() -> None:
        episode = asyncio.create_task(played(environment, environment.tasks.train(0), ["hang"]))
        await asyncio.sleep(0.3)
        assert len(OPEN) == 1
        episode.cancel()
        await asyncio.gather(episode, return_exceptions=True)

    asyncio.run(cancelled())
    assert sessions_end()


def test_an_invalid_action_is_told_to_the_model(url: str) -> None:
    as_json = load_openenv(url, action_field=lambda message: {"words": message["content"]})
    messages, score = play(as_json, ["hello"])
    assert messages[-1]["content"].startswith("error: the action is not valid")
    assert score is None
    assert sessions_end()


def test_what_is_no_server_or_no_field_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no OpenEnv server answers"):
        envs.load("openenv:http://127.0.0.1:9")
    with pytest.raises(UsageError, match="no field 'words'"):
        envs.load(f"openenv:{url}", action_field="words")
    with pytest.raises(UsageError, match="http://host:port"):
        envs.load("openenv:127.0.0.1:8000")
