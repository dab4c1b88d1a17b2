"""Decides who gets which container, and what happens when a container or a whole host fails.

Every host has a fixed number of places; a place holds a warm container, or none after one was
thrown away: whoever takes an empty place starts the next container in it. A host that fails is
left alone for RETRY_S and its work goes to the others. Nobody waits without end: a place that is
taken comes back, since every use of a container has a deadline, and when no place is taken and no
host works, the wait ends with the reasons of all of them.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rewards.sandbox.docker_container import Container, Lost
from rewards.sandbox.protocol import SandboxError

RETRY_S = 30.0
STARTS_AT_ONCE = 8


@dataclass(slots=True, eq=False)
class Host:
    """A Docker engine and how it fares."""

    url: str
    engine: Any
    down_until: float = 0.0  # monotonic
    why: str = ""


@dataclass(slots=True, eq=False)
class Place:
    """Room for one container on a host."""

    host: Host
    container: Container | None = None


@dataclass(slots=True)
class Pool:
    """Places and who has them. ``start`` makes a container on a host; raises SandboxError, Lost."""

    start: Callable[[Host], Container]
    places: list[Place]
    _free: list[Place] = field(default_factory=list)
    _queue: list[object] = field(default_factory=list)  # who waits, the first one first
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False
    _pid: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self._free = list(self.places)

    def fill(self) -> None:
        """Start a container in every place. Raises SandboxError where none could be started."""
        with ThreadPoolExecutor(STARTS_AT_ONCE) as threads:
            failures = [one for one in threads.map(self._fill_one, self.places) if one]
        if len(failures) == len(self.places):
            raise SandboxError(f"no container could be started: {self._reasons()}")
        for why in dict.fromkeys(failures):
            warnings.warn(f"a container was not started: {why}", stacklevel=3)

    def _fill_one(self, place: Place) -> str:
        try:
            place.container = self.start(place.host)
        except (SandboxError, Lost) as error:
            self.down(place.host, str(error))
            return str(error)
        return ""

    def take(self, within_s: float = math.inf) -> Place:
        """A place with a container in it, as soon as there is one. Raises SandboxError."""
        deadline = time.monotonic() + within_s
        if os.getpid() != self._pid:
            raise SandboxError("this sandbox was made before a fork, in the parent process")
        while True:
            place = self._next(deadline)
            if place.container is not None:
                return place
            try:
                place.container = self.start(place.host)
                return place
            except (SandboxError, Lost) as error:
                self.down(place.host, str(error))
            finally:
                if place.container is None:
                    self.give_back(place)

    def give_back(self, place: Place) -> None:
        """Let the next one have it."""
        with self._changed:
            self._free.append(place)
            self._changed.notify_all()
            closed = self._closed
        if closed:
            self.dispose(place)

    def down(self, host: Host, why: str) -> None:
        """Leave a host alone for a while."""
        with self._changed:
            host.why, host.down_until = why, time.monotonic() + RETRY_S
            self._changed.notify_all()

    def close(self) -> None:
        """Throw every container away; who waits or works gets SandboxError."""
        if os.getpid() != self._pid:  # a fork must not end its parent's containers
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            free = list(self._free)
        held = [(place, place.container) for place in self.places if place.container is not None]
        for _, container in held:  # all of them end while we ask for the first
            container.stream.hang_up()
        for place, container in held:
            if place in free:
                self.dispose(place)
            else:  # its user finds out, and lets go of the connection
                self._remove(place.host, container)

    def _next(self, deadline: float) -> Place:
        """First come, first served: or whoever gives back would always be the next to take."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while (place := self._usable() if self._queue[0] is ticket else None) is None:
                    self._check_hope()
                    if time.monotonic() > deadline:
                        raise SandboxError(
                            f"none of {len(self.places)} containers was free in time: give "
                            "DockerSandbox as many containers= as there are sessions at once"
                        )
                    self._changed.wait(1.0)
                self._free.remove(place)
                return place
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _check_hope(self) -> None:
        """Raises SandboxError when no place can come back."""
        if self._closed:
            raise SandboxError("the sandbox is closed")
        if len(self._free) == len(self.places) and self._usable() is None:
            raise SandboxError(f"no Docker host works: {self._reasons()}")

    def _usable(self) -> Place | None:
        """A free place, one with a container if there is one."""
        if self._closed:
            return None
        now = time.monotonic()
        usable = [one for one in self._free if one.container or one.host.down_until <= now]
        return min(usable, key=lambda one: one.container is None, default=None)

    def _reasons(self) -> str:
        hosts = {place.host.url: place.host for place in self.places}
        return "; ".join(f"{url}: {host.why}" for url, host in hosts.items())

    def dispose(self, place: Place) -> None:
        """Throw away the container of a place that one has taken; the place stays taken."""
        container, place.container = place.container, None
        if container is not None:
            container.stream.close()  # its agent ends by this alone, where the engine still works
            self._remove(place.host, container)

    def _remove(self, host: Host, container: Container) -> None:
        try:
            host.engine.remove(container.ident)
        except SandboxError as error:
            self.down(host, str(error))
