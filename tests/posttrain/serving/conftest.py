"""Servers as users start them, for all tests of this folder."""

import pytest

from tests.served import serving


@pytest.fixture(scope="session")
def serve():
    return serving
