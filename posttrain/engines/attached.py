"""Rollout servers that somebody else started, on this machine or another: ``rollout.urls``.

Decides what such a server must be (``posttrain rollout-server`` starts one that is) and says so
before a model is loaded. A server that was away is waited for, and brought to the weights it should
have. One whose weights can't be trusted is asked to start again: its supervisor does that there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from posttrain.config import GrpoConfig
from posttrain.engines.server import TOKEN, architecture, bearer, version_of_vllm
from posttrain.errors import RunError, UsageError
from posttrain.waits import elsewhere, waiting

_ASK_TIMEOUT_S = 10.0  # of one question to a server that is up
_POLL_EVERY_S = 0.5
_START = "start it there with: posttrain rollout-server MODEL --host HOST"


class AttachedServer:
    """A server at a URL; ``start`` waits for it, and never starts anything here."""

    elsewhere = True

    def __init__(self, url: str, startup_timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = startup_timeout_s
        self._unfit = False  # it must start again before it is used

    async def start(self) -> None:
        """Wait until it is healthy, with whole weights and nothing paused. Raises RunError."""
        deadline = time.monotonic() + self._timeout_s
        with waiting("a healthy server", deadline_s=self._timeout_s, owner=self.url):
            async with _connection(self.url) as http:
                about = await self._reached(http, deadline)
                try:
                    if self._unfit or not about["whole"]:
                        (await http.post("/posttrain/restart")).raise_for_status()
                        about = await self._reached(http, deadline, not_pid=about["pid"])
                    # An orchestrator that died in the middle of a sync may have left it paused.
                    (await http.post("/resume")).raise_for_status()
                except httpx.HTTPError as error:
                    raise RunError(f"{self.url} answered, and then no more: {error!r}") from error
        self._unfit = False
        elsewhere(f"rollout server {self.url}", about["host"])

    def alive(self) -> bool:
        return True

    def tail(self, lines: int = 20) -> str:
        return f"(the log of {self.url} is on its own machine)"

    async def stop(self, *, at_once: bool = False) -> None:
        """It is not ours to end; ``at_once`` says that its weights can't be trusted."""
        self._unfit = at_once

    async def _reached(
        self, http: httpx.AsyncClient, deadline: float, not_pid: int = 0
    ) -> dict[str, Any]:
        """What it says of itself, once it does; another process than ``not_pid``."""
        why = ""
        while time.monotonic() < deadline:
            try:
                response = await http.get("/posttrain/about")
                if response.status_code < 500:
                    answer = _read(response)
                    if isinstance(answer, str):
                        raise UsageError(f"rollout.urls: {self.url}: {answer}")
                    if answer["pid"] != not_pid:
                        return answer
                why = f"status {response.status_code}"
                why += ", and it has not started again" if not_pid else ""
            except httpx.TransportError as error:
                why = repr(error)
            await asyncio.sleep(_POLL_EVERY_S)
        raise RunError(
            f"no healthy server answered at {self.url} in {self._timeout_s:g} s "
            f"(grpo.startup_timeout_s): {why}"
        )


def check_servers(config: GrpoConfig, window: int) -> None:
    """Ask every server of ``rollout.urls`` what it is. Raises UsageError with a line per fault."""
    urls = config.rollout.urls
    if not urls:
        return
    from transformers import AutoConfig

    wanted = architecture(AutoConfig.from_pretrained(config.model))
    with ThreadPoolExecutor(max_workers=len(urls)) as pool:
        answers = list(pool.map(_about, urls))
    faults = [
        f"rollout.urls: {url}: {fault}"
        for url, answer in zip(urls, answers, strict=True)
        for fault in (
            [answer] if isinstance(answer, str) else _faults(answer, config, wanted, window)
        )
    ]
    if faults:
        raise UsageError("\n".join(faults))


def _about(url: str) -> dict[str, Any] | str:
    """What a server says of itself, or why it says nothing."""
    try:
        with httpx.Client(timeout=_ASK_TIMEOUT_S, trust_env=False, headers=bearer()) as http:
            response = http.get(f"{url.rstrip('/')}/posttrain/about")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"no answer ({error}); {_START}"
    return _read(response)


def _read(response: httpx.Response) -> dict[str, Any] | str:
    if response.status_code == 401:
        return f"it wants a token, and {TOKEN} here is {_told(bearer())}"
    if response.status_code != 200:
        return f"it has no routes for replacing weights (status {response.status_code}); {_START}"
    about: dict[str, Any] = response.json()
    return about


def _told(header: dict[str, str]) -> str:
    return "not the one it was started with" if header else "not set"


def _faults(
    about: dict[str, Any], config: GrpoConfig, wanted: dict[str, Any], window: int
) -> Iterable[str]:
    here = version_of_vllm()
    if here and about["vllm"] != here:
        yield f"it runs vLLM {about['vllm']}, and here is {here}: install the same"
    found = about["architecture"]
    odd = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if odd:
        differ = ", ".join(f"{n} {found.get(n)} instead of {wanted.get(n)}" for n in odd)
        yield f"it serves another model ({about['model']}) than {config.model}: {differ}"
    if about["window"] < window:
        yield (
            f"its window is {about['window']} tokens, the run's is {window}: start it with "
            f"--max-model-len {window}, or set rollout.max_model_len = {about['window']}"
        )
    if about["logprobs_mode"] != "processed_logprobs":
        yield f"its log-probs are {about['logprobs_mode']}, not processed_logprobs; {_START}"
    lora = config.learner.lora
    adapter = lora is not None and lora.sync == "adapter"
    if lora is not None and adapter and about["lora_rank"] < lora.rank:
        yield (
            f"it takes adapters up to rank {about['lora_rank']}, and learner.lora.rank is "
            f"{lora.rank}: start it with --lora-rank {lora.rank}"
        )
    nccl = config.sync.transport == "nccl"
    if (about["transport"] == "nccl") != nccl and not adapter:
        name = "nccl" if nccl else "file"
        yield f"its weights come by {about['transport']}: start it with --transport {name}"


def _connection(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url, timeout=_ASK_TIMEOUT_S, trust_env=False, headers=bearer()
    )
