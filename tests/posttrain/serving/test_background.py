"""A server for the length of a block: it answers inside, and is gone afterwards."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

import posttrain
from posttrain.errors import UsageError


def test_it_answers_inside_the_block_and_is_gone_after(checkpoint: Path) -> None:
    with posttrain.served(checkpoint, name="small", engine="embedded") as url:
        body = {"model": "small", "messages": [{"role": "user", "content": "1 + 1 ?"}]}
        body |= {"max_tokens": 4, "temperature": 1.0, "seed": 0}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] <= 4
        assert answer.status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")


def test_what_is_no_checkpoint_is_refused_before_a_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError), posttrain.served(tmp_path):
        pass
