"""Decides how a Docker engine is spoken to: the only module that knows the Docker SDK.

``Engine`` has the few requests that the sandbox and its image need, and turns every failure into
an ``EngineError`` that names the host and the request. Each request has a time-out.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import IO, Any, TypeVar

from rewards.sandbox.docker_container import Stream
from rewards.sandbox.docker_owner import OWNER_LABEL
from rewards.sandbox.protocol import SandboxError

DEFAULT_HOST = "unix:///var/run/docker.sock"
CONNECT_S = 10.0
API_S = 30.0  # for one request to an engine
BUILD_S = 1800.0
START = (
    "import sys; sys.path.insert(0, '/opt/posttrain'); "
    "from rewards.sandbox.image.agent import main; main()"
)
F = TypeVar("F", bound=Callable[..., Any])


class EngineError(SandboxError):
    """A Docker engine can't be reached, or refused a request."""


def _named(method: F) -> F:
    """Turns the SDK's many exceptions into one that says which host and what was asked."""

    @wraps(method)
    def call(self: Engine, *args: Any, **kwargs: Any) -> Any:
        try:
            import docker
            import requests
        except ImportError:
            raise EngineError("the Docker SDK is missing: pip install docker") from None
        try:
            return method(self, *args, **kwargs)
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            what = method.__name__.strip("_").replace("_", " ")
            raise EngineError(f"Docker at {self.url}: {what}: {error}") from None

    return call  # type: ignore[return-value]


class Engine:
    """One Docker engine: the few requests that a pool needs. All methods raise EngineError."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = self._connect()

    @_named
    def _connect(self) -> Any:
        import docker

        tls: Any = None
        folder = os.environ.get("DOCKER_CERT_PATH")
        if self.url.startswith("tcp://") and os.environ.get("DOCKER_TLS_VERIFY") and folder:
            cert, key, ca = (os.path.join(folder, f"{one}.pem") for one in ("cert", "key", "ca"))
            tls = docker.tls.TLSConfig(client_cert=(cert, key), ca_cert=ca, verify=True)

        class Client(docker.APIClient):
            """An engine is not a web site: neither the environment's proxies nor its certificates
            are for it, and requests would let REQUESTS_CA_BUNDLE win over ``tls``."""

            trust_env = property(lambda self: False, lambda self, value: None)

        client = Client(self.url, version="auto", timeout=CONNECT_S, tls=tls)
        client.timeout = API_S
        return client

    @_named
    def info(self) -> dict[str, Any]:
        """``docker info``."""
        return dict(self._client.info())

    @_named
    def image_labels(self, name: str) -> dict[str, str] | None:
        """The labels of an image, None when it is not there."""
        import docker

        try:
            return dict(self._client.inspect_image(name)["Config"].get("Labels") or {})
        except docker.errors.ImageNotFound:
            return None

    @_named
    def start(
        self, image: str, labels: dict[str, str], config: dict[str, Any]
    ) -> tuple[str, Stream]:
        """Create a container from ``config`` and what holds for all, attach to it, start it."""
        import docker

        uid = 20_000 + secrets.randbelow(40_000)  # limits of a user are then those of a container
        created: str = self._client.create_container(
            image,
            ["/usr/bin/python3", "-I", "-S", "-c", START],
            user=f"{uid}:{uid}",
            hostname="sandbox",
            stdin_open=True,
            stop_signal="SIGKILL",  # the only one that a first process does not ignore
            labels=labels,
            host_config=self._client.create_host_config(
                auto_remove=True,
                network_mode="none",
                dns=["127.0.0.1"],  # or its resolv.conf would be the host's
                ipc_mode="private",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                log_config=docker.types.LogConfig(type="none"),
                ulimits=[docker.types.Ulimit(name="core", soft=0, hard=0)],
                **config,
            ),
        )["Id"]
        try:
            ends = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            stream = Stream(self._client.attach_socket(created, ends))
            self._client.start(created)
        except BaseException:
            self.remove(created)
            raise
        return created, stream

    @_named
    def remove(self, ident: str) -> None:
        """Kill and remove a container; returns when it is gone."""
        import docker

        try:
            self._client.remove_container(ident, force=True, v=True)
        except docker.errors.NotFound:
            pass
        except docker.errors.APIError as error:
            if "already in progress" not in str(error):
                raise
            try:
                self._client.wait(ident, timeout=API_S, condition="removed")
            except docker.errors.NotFound:
                pass

    @_named
    def owned(self) -> list[tuple[str, dict[str, str]]]:
        """Id and labels of every container that any sandbox made here."""
        found = self._client.containers(all=True, filters={"label": OWNER_LABEL})
        return [(one["Id"], dict(one["Labels"])) for one in found]

    @_named
    def ran_out_of_memory(self, ident: str) -> bool:
        """Whether the engine saw the container run out of memory; takes about a second."""
        now = datetime.fromisoformat(self._client.info()["SystemTime"])  # by the engine's clock
        wanted = {"container": ident, "event": ["oom"]}
        events = self._client.events(1, int(now.timestamp()) + 1, filters=wanted, decode=True)
        return any(True for _ in events)

    @_named
    def build(
        self, context: IO[bytes], tag: str, arguments: dict[str, str], labels: dict[str, str]
    ) -> None:
        """Build an image from a tar with a Dockerfile."""
        import docker

        said = ""
        for line in self._client.build(
            *(None, tag),
            fileobj=context,
            custom_context=True,
            rm=True,
            forcerm=True,
            decode=True,
            timeout=BUILD_S,
            buildargs=arguments,
            labels=labels,
        ):
            said = (said + line.get("stream", ""))[-1000:]
            if "error" in line:
                raise docker.errors.DockerException(f"{line['error']}\n{said}")

    @_named
    def import_root(self, tar_path: str, repository: str, tag: str, changes: list[str]) -> None:
        """Make an image of the root file system in a tar file."""
        self._client.timeout = BUILD_S
        try:
            self._client.import_image(tar_path, repository, tag, changes=changes)
        finally:
            self._client.timeout = API_S

    @_named
    def tag(self, image: str, repository: str, tag: str) -> None:
        """Give an image another name."""
        self._client.tag(image, repository, tag, force=True)


def default_hosts() -> tuple[str, ...]:
    """DOCKER_HOST (several, separated by commas, are several hosts), else the local socket."""
    given = os.environ.get("DOCKER_HOST", "")
    return tuple(one.strip() for one in given.split(",") if one.strip()) or (DEFAULT_HOST,)
