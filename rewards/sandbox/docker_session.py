"""Decides how a session holds a container of the pool, and what becomes of it afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rewards.sandbox.docker_container import Container, Lost
from rewards.sandbox.docker_pool import Host, Place, Pool
from rewards.sandbox.protocol import Ending, Finished, Program, SandboxError, SessionOver
from rewards.sandbox.session import MAX_ANSWER

Judge = Callable[[Host, str, Lost, float], Finished | Lost]  # why a container was lost


class ContainerLine:
    """The ``Line`` of a session. It has taken ``place`` and gives it back: at once when the
    session could not start, else when it has ended. Raises SandboxError."""

    def __init__(self, pool: Pool, place: Place, program: Program, judge: Judge) -> None:
        self._pool, self._place, self._judge = pool, place, judge
        self._lock = threading.Lock()  # one thread talks, or lets go
        self._held, self._started = True, time.monotonic()
        try:
            self._container.open(program)
        except Lost as lost:
            self._let_go(clean=False)
            raise SandboxError(f"a session did not start: {lost}") from None
        except BaseException:
            self._let_go(clean=False)
            raise

    def exchange(self, request: bytes, timeout_s: float) -> bytes:
        """Raises SessionOver, SandboxError."""
        with self._lock:
            if not self._held:
                raise SandboxError("the session is closed")
            container = self._container
            try:
                answer = container.tell(request, timeout_s, MAX_ANSWER)
            except Lost as lost:
                wall_s = time.monotonic() - self._started
                self._let_go(clean=False)
                known = self._judge(self._place.host, container.ident, lost, wall_s)
                if isinstance(known, Finished):
                    raise SessionOver(known.ending) from None
                if known.blameless:
                    raise SandboxError(f"a session's container was lost: {known}") from None
                raise SessionOver(Ending.SIGNAL) from None
            if isinstance(answer, bytes):
                return answer
            self._let_go(clean=not answer.unclean)
            raise SessionOver(answer.ending)

    def close(self) -> None:
        """End the program; from another thread than one that waits, the container too."""
        if self._lock.acquire(blocking=False):
            try:
                if self._held:
                    self._let_go(clean=self._ends_well())
            finally:
                self._lock.release()
            return
        container = self._place.container
        if container is not None:
            container.stream.hang_up()  # whoever waits for it learns, and lets go

    @property
    def _container(self) -> Container:
        assert self._place.container is not None
        return self._place.container

    def _ends_well(self) -> bool:
        try:
            return not self._container.end().unclean
        except Lost:
            return False

    def _let_go(self, *, clean: bool) -> None:
        self._held = False
        if not clean:
            self._pool.dispose(self._place)
        self._pool.give_back(self._place)
