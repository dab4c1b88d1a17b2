"""The two sandboxes, each made once for all tests of rewards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

import rewards.sandbox
from rewards.sandbox.docker import DockerSandbox
from rewards.sandbox.image.image import build
from rewards.sandbox.protocol import Sandbox
from tests.rewards.docker_engine import DockerEngine, why_not

LANGUAGES = ("python", "bash")


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[str]:
    """The URL of an engine with the image: our own, or POSTTRAIN_TEST_DOCKER_HOST (quicker)."""
    if given := os.environ.get("POSTTRAIN_TEST_DOCKER_HOST"):
        build([given], LANGUAGES)
        yield given
        return
    reason = why_not()
    if reason is None and shutil.which("debootstrap", path="/usr/sbin:/usr/bin") is None:
        reason = "debootstrap is not installed: run scripts/sandbox_host.sh"
    if reason is not None:
        pytest.skip(reason)
    engine = DockerEngine()
    try:
        build([engine.url], LANGUAGES, method="debootstrap")
        yield engine.url
    finally:
        engine.stop()


@pytest.fixture(scope="session")
def docker_sandbox(docker_engine: str) -> Iterator[Sandbox]:
    """Two warm containers with the default limits."""
    with DockerSandbox([docker_engine], containers=2) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def bubblewrap_sandbox() -> Iterator[Sandbox]:
    """Places of bubblewrap with the default limits."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed: run scripts/sandbox_host.sh")
    sandbox = rewards.sandbox.load("bubblewrap")
    try:
        yield sandbox
    finally:
        sandbox.close()
