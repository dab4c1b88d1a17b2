"""Runs untrusted programs in a pool of warm Docker containers, on one host or on several.

A container is started once and serves many programs, since starting one costs half a second and
``docker exec`` a tenth: its first process is our agent (``rewards.sandbox.image.agent``), which
runs a program, kills and empties everything after it, and says whether the container is clean.
Whatever is not provably clean is removed and replaced. ``docker_pool`` decides who gets which
container, ``docker_engine`` knows the Docker SDK.

Every container: no network, read-only root, a small file system in memory for /tmp, limits on
memory (no swap), processes and CPU, an own user id that is not root, no capabilities, no new
privileges, Docker's seccomp filter, and a tighter one of our own around the program. It belongs to
one process: when that ends, however it ends, the container ends too.
"""

from __future__ import annotations

import secrets
import signal
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rewards.errors import UsageError
from rewards.sandbox import session
from rewards.sandbox.docker_container import Container, Lost, check_facts, check_program
from rewards.sandbox.docker_engine import Engine, EngineError, default_hosts
from rewards.sandbox.docker_owner import OWNER_LABEL, POOL_LABEL, has_ended, ourselves
from rewards.sandbox.docker_pool import STARTS_AT_ONCE, Host, Place, Pool
from rewards.sandbox.docker_session import ContainerLine
from rewards.sandbox.image.image import AGENT_LABEL, BUILD_COMMAND, IMAGE, agent_digest
from rewards.sandbox.image.room import OWN_FILES
from rewards.sandbox.protocol import (
    MEBIBYTE,
    Ending,
    Finished,
    Limits,
    Program,
    SandboxError,
    SessionLimits,
)
from rewards.sandbox.session import OpenSession

AGENT_BYTES = 32 * MEBIBYTE  # for the agent and a job on its way in, beside the program's memory
SHM_BYTES, SHM_FILES = 4 * MEBIBYTE, 64  # beside disk_bytes and files
# What a container is made with: room for a compiler, and for what a judge lays beside a program. A
# program's own limits are smaller and are kept by the agent.
CONTAINER_LIMITS = Limits(
    memory_bytes=1024 * MEBIBYTE, processes=128, disk_bytes=192 * MEBIBYTE, files=4096
)
SESSION_WAIT_S = 30.0  # for a free container
TRIES = 5  # containers lost under one program, by nobody's fault, before giving up


def check_image(engine: Engine, image: str) -> None:
    """Raises EngineError naming the command that builds an image that is missing or outdated."""
    labels = engine.image_labels(image)
    if labels is None:
        raise EngineError(
            f"Docker at {engine.url} has no image {image!r}; make it: {BUILD_COMMAND}"
        )
    if labels.get(AGENT_LABEL) != agent_digest():
        raise EngineError(
            f"image {image!r} at {engine.url} is not of this version; make it anew: {BUILD_COMMAND}"
        )


def sweep(engine: Engine) -> int:
    """Remove what owners on this machine left behind, who were killed; returns how many."""
    dead = [ident for ident, labels in engine.owned() if has_ended(labels[OWNER_LABEL])]
    for ident in dead:
        engine.remove(ident)
    return len(dead)


@dataclass(frozen=True)
class Recipe:
    """How containers are made: alike on every host."""

    image: str
    limits: Limits
    cpus: float
    labels: dict[str, str] = field(
        default_factory=lambda: {OWNER_LABEL: ourselves(), POOL_LABEL: secrets.token_hex(8)}
    )

    def start(self, host: Host) -> Container:
        """A container that has proved what it promises. Raises SandboxError, Lost."""
        ident, stream = host.engine.start(self.image, self.labels, self._config())
        try:
            container = Container(ident, stream)
            check_facts(container.facts, self.limits)
            return container
        except BaseException:
            stream.close()
            host.engine.remove(ident)
            raise

    def _config(self) -> dict[str, Any]:
        limits = self.limits
        memory = limits.memory_bytes + limits.disk_bytes + SHM_BYTES + AGENT_BYTES
        disk = f"size={limits.disk_bytes},nr_inodes={limits.files + OWN_FILES}"
        shared = f"size={SHM_BYTES},nr_inodes={SHM_FILES}"
        return {
            "mem_limit": memory,
            "memswap_limit": memory,
            "pids_limit": limits.processes + 4,  # the agent, and room for it to start the next
            "nano_cpus": int(self.cpus * 1e9),
            "tmpfs": {
                "/tmp": f"rw,exec,nosuid,nodev,mode=1777,{disk}",
                "/dev/shm": f"rw,noexec,nosuid,nodev,mode=1777,{shared}",
            },
        }


class DockerSandbox:
    """Runs programs in warm containers; ``run`` may be called from many threads at once.

    ``hosts`` are engine URLs (``unix://``, ``tcp://``; with DOCKER_TLS_VERIFY and DOCKER_CERT_PATH
    set, tcp is TLS), by default DOCKER_HOST or the local socket. ``containers`` is their number per
    host (default: its CPUs), ``cpus`` what each may use. ``limits`` are what the containers are
    made with: a program may ask for less, and is refused (UsageError) when it asks for more memory,
    processes, disk or files.

    A host that does not answer is left out with a warning, as long as another one does; a host
    that dies later is left out too, what ran there runs again elsewhere, and it is tried again
    half a minute later. With none left ``run`` raises SandboxError, naming each host and why.

    A program that takes two containers down with it, on hosts that are well, is taken to have
    killed itself (Ending.SIGNAL): it can't turn its failure into "could not be judged".
    """

    name = "docker"

    def __init__(
        self,
        hosts: Sequence[str] = (),
        image: str = IMAGE,
        *,
        containers: int | None = None,
        limits: Limits = CONTAINER_LIMITS,
        cpus: float = 1.0,
    ) -> None:
        if isinstance(hosts, str):
            raise UsageError(f"hosts is a list of URLs, got {hosts!r}: put it in brackets")
        if containers is not None and containers < 1:
            raise UsageError(f"containers={containers}: each host needs at least 1")
        self.limits = limits
        self._has: dict[str, bool] = {}
        ready, failed = _reach(hosts or default_hosts(), image)
        if not ready:
            raise SandboxError("no Docker host can be used: " + "; ".join(failed))
        for why in failed:
            warnings.warn(f"left out of the sandbox: {why}", stacklevel=2)
        recipe = Recipe(image, limits, cpus)
        places = [Place(host) for host, n_cpus in ready for _ in range(containers or n_cpus)]
        self._pool = Pool(recipe.start, places)
        # The pool knows nothing of us: close runs when we are forgotten, or the interpreter ends.
        self.close = weakref.finalize(self, self._pool.close)
        try:
            for host, _ in ready:
                sweep(host.engine)
            self._pool.fill()
            self.layers = _layers(self._pool, limits, cpus)
        except BaseException:
            self.close()
            raise

    @classmethod
    def available(cls, hosts: Sequence[str] = (), image: str = IMAGE) -> str | None:
        """None when at least one host has an engine and the image, else why not."""
        ready, failed = _reach(hosts or default_hosts(), image)
        return None if ready else "; ".join(failed)

    def __enter__(self) -> DockerSandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, program: Program) -> Finished:
        """Run to the end, in a container that is its own. Raises SandboxError, UsageError."""
        check_program(program, self.limits)
        deaths = 0
        for _ in range(TRIES + len(self._pool.places)):  # all may have ended while they were idle
            place = self._pool.take()
            try:
                result = self._attempt(place, program)
            finally:
                self._pool.give_back(place)
            if isinstance(result, Finished):
                return result
            deaths += not result.blameless
            if deaths > 1:
                return Finished(Ending.SIGNAL, None, int(signal.SIGKILL), b"", b"", 0.0)
        raise SandboxError(f"no container survives: {result}")

    def session(
        self, files: Mapping[str, bytes] | None = None, limits: SessionLimits | None = None
    ) -> OpenSession:
        """A session, in a container that is its own until it ends. Raises SandboxError, UsageError.

        Containers are shared with ``run``; one that is not free within half a minute is an error.
        """
        limits = limits or SessionLimits()
        program = session.program(files, limits)
        check_program(program, self.limits)
        place = self._pool.take(SESSION_WAIT_S)
        return OpenSession(ContainerLine(self._pool, place, program, self.judge), limits)

    def has(self, command: str) -> bool:
        """Whether the image has the command. Raises SandboxError."""
        if command not in self._has:
            place = self._pool.take()
            try:
                assert place.container is not None
                self._has[command] = place.container.has(command)
            except Lost as lost:
                self._pool.dispose(place)
                raise SandboxError(f"asking for {command!r}: {lost}") from None
            finally:
                self._pool.give_back(place)
        return self._has[command]

    def _attempt(self, place: Place, program: Program) -> Finished | Lost:
        """Run it; unless all is well and clean afterwards, the container does not stay."""
        container, started, clean = place.container, time.monotonic(), False
        assert container is not None
        try:
            finished, unclean = container.run(program)
            clean = not unclean
            return finished
        except Lost as lost:
            loss, wall_s = lost, time.monotonic() - started
        finally:
            if not clean:
                self._pool.dispose(place)
        return self.judge(place.host, container.ident, loss, wall_s)

    def judge(self, host: Host, ident: str, loss: Lost, wall_s: float) -> Finished | Lost:
        """What is known of a program whose container was lost."""
        if loss.blameless:
            return loss
        try:
            out_of_memory = host.engine.ran_out_of_memory(ident)
        except EngineError as error:
            self._pool.down(host, str(error))
            return Lost(str(loss), blameless=True)
        if out_of_memory:
            return Finished(Ending.MEMORY, None, None, b"", b"", wall_s)
        if loss.late:
            return Finished(Ending.WALL, None, None, b"", b"", wall_s)
        return loss


def _reach(hosts: Sequence[str], image: str) -> tuple[list[tuple[Host, int]], list[str]]:
    """The hosts that can be used, with their number of CPUs; and why others can't."""

    def ask(url: str) -> tuple[Host, int] | str:
        try:
            engine = Engine(url)
            check_image(engine, image)
            return Host(url, engine), max(1, int(engine.info()["NCPU"]))
        except SandboxError as error:
            return str(error)

    with ThreadPoolExecutor(STARTS_AT_ONCE) as threads:
        answers = list(threads.map(ask, dict.fromkeys(hosts)))
    ready = [one for one in answers if not isinstance(one, str)]
    return ready, [one for one in answers if isinstance(one, str)]


def _layers(pool: Pool, limits: Limits, cpus: float) -> tuple[str, ...]:
    """What ``check_facts`` has seen in every container, and what they were made with."""
    n_places = len(pool.places)
    n_hosts = len({place.host.url for place in pool.places})
    memory, disk = limits.memory_bytes // MEBIBYTE, limits.disk_bytes // MEBIBYTE
    return (
        f"{n_places} warm containers on {n_hosts} host{'s' if n_hosts > 1 else ''}",
        "no network",
        "read-only root",
        f"/tmp of {disk} MiB and {limits.files} files, emptied after each program",
        f"memory {memory} MiB without swap",
        f"{limits.processes} processes",
        f"{cpus:g} CPU",
        "a user that is not root",
        "no capabilities",
        "no new privileges",
        "seccomp: Docker's filter and our own",
    )
