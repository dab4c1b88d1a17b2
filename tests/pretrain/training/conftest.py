"""What the tests of training share, made once: a corpus, and a run that nothing disturbs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.data.shards import Shards
from tests.pretrain.training.small_run import corpus, trained


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def whole(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    held_out = {"report__held_out": [str(shards.folder)], "report__evaluate_tokens": 600}
    trained(shards, out, report__prompts=["en 0"], report__sample_tokens=4, **held_out)
    return out
