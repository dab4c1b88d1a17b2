"""One bubblewrap for all tests of environments."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rewards.sandbox import Sandbox
from rewards.sandbox.bubblewrap import BubblewrapSandbox


@pytest.fixture(scope="session")
def box() -> Iterator[Sandbox]:
    if why := BubblewrapSandbox.available():
        pytest.skip(why)
    opened = BubblewrapSandbox(places=2)
    yield opened
    opened.close()
