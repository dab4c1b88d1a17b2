"""Scores conversations on a server; decides what is sent and how the answer is read.

``api`` is told by the URL's path unless it is given:

``vllm``       no path, /v1 or /classify. vLLM's pooling server; token ids are sent, rendered and
               cut by the same rules as in this process, and ``use_activation: false``, because a
               sigmoid or softmax is on by default. The tokenizer is the folder that the server
               names, or ``tokenizer=``; at load a text is tokenised on both sides and must agree.
``openrlhf``   /get_reward. OpenRLHF's serve_rm: ``{"query": [text]}`` -> ``{"rewards": [x]}`` with
               text rendered by ``tokenizer=``; the server tokenises it, and adds EOS.
``scores``     any other path. The server renders by itself:
               POST {"inputs": [{"messages": [...], "prompt": "...", "completion": "..."}]}
               -> {"scores": [1.25]}; null says that it could not judge.

One request holds one conversation.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from rewards.errors import UsageError, did_you_mean
from rewards.model.failures import Unjudged
from rewards.model.reading import PLAIN, PROBE, Message, Reader, ReadingSettings, load_tokenizer
from rewards.model.reward import Raw
from rewards.model.transport import Transport

APIS = ("auto", "vllm", "openrlhf", "scores")
_API_OF_PATH = {"": "vllm", "/classify": "vllm", "/v1": "vllm", "/get_reward": "openrlhf"}
_OLDEST_VLLM = (0, 11, 2)  # before it the switch had another name, and was ignored silently
_UNTOLD = 10**8  # a window that the server keeps to itself


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSettings(ReadingSettings):
    """How a server is asked."""

    api: str = "auto"
    tokenizer: str = ""  # a folder; vllm: empty takes the one that the server names
    model: str = ""  # vllm: empty takes the first that is served
    label: int | None = None  # of a head with several labels
    api_key_env: str = ""  # the environment variable that holds the key
    timeout_s: float = 55.0  # of one score with all its attempts; rewards.apply gives 60 s
    attempts: int = 5
    concurrency: int = 32  # requests at once, per event loop
    check: bool = True  # score a probe while loading

    def __post_init__(self) -> None:
        ReadingSettings.__post_init__(self)
        if self.api not in APIS:
            raise UsageError(f"api = {self.api!r}.{did_you_mean(self.api, APIS)}")
        rules = (self.eos, self.max_tokens, self.too_long)
        if self.api in ("scores", "openrlhf") and rules != ("auto", 0, "error"):
            raise UsageError(
                f"api {self.api!r} makes tokens itself: no eos, max_tokens or too_long"
            )
        if not (0 < self.timeout_s < float("inf")) or self.attempts < 1 or self.concurrency < 1:
            raise UsageError("timeout_s, attempts and concurrency must be positive")


class RemoteScorer:
    """Raises UsageError for a bad URL, or a server that does not answer or score the probe."""

    def __init__(self, url: str, settings: RemoteSettings) -> None:
        base, path, self.api = address(url, settings.api)
        settings = replace(settings, api=self.api)  # checks what this api cannot do
        self._path, self._settings = path, settings
        self.model = settings.model
        self._transport = Transport(
            base,
            api_key_env=settings.api_key_env,
            timeout_s=settings.timeout_s,
            attempts=settings.attempts,
            concurrency=settings.concurrency,
        )
        self._reader = self._make_reader() if self.api != "scores" else None
        if settings.check:
            self._check_probe()

    async def raw(self, messages: Sequence[Message]) -> Raw:
        body, cut, defused = await asyncio.to_thread(self._body, messages)
        answer = await self._transport.post(self._path, body)
        return Raw(self._value(answer), cut, defused)

    async def close(self) -> None:
        await self._transport.close()

    def _body(self, messages: Sequence[Message]) -> tuple[dict[str, Any], int, int]:
        """What is sent, how many tokens were cut off, how many special tokens defused."""
        if self._reader is None:
            asked = [m for m in messages if m.get("role") == "user"]
            one = {
                "messages": list(messages),
                "prompt": asked[-1].get("content") if asked else "",
                "completion": messages[-1].get("content"),
            }
            return {"inputs": [one]}, 0, 0
        if self.api == "openrlhf":
            safe, defused = self._reader.defused(messages)
            return {"query": [self._reader.render(safe)]}, 0, defused
        reading = self._reader.read(messages)
        body = {"model": self.model, "input": [reading.ids], "use_activation": False}
        return body, reading.cut, reading.defused

    def _value(self, answer: Any) -> float:
        """The score in an answer. Raises Unjudged for anything else."""
        try:
            if self.api == "vllm":
                (item,) = answer["data"]
                value = item["probs"][self._label(len(item["probs"]))]
            else:
                (value,) = answer["scores" if self.api == "scores" else "rewards"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Unjudged(
                f"the answer of {self._transport.url}{self._path} has no score where {self.api} "
                f"has it: {answer!r:.200}"
            ) from error
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise Unjudged(f"the server's score is {value!r:.80}")
        return float(value)

    def _label(self, labels: int) -> int:
        chosen = self._settings.label
        if chosen is None and labels > 1:
            raise Unjudged(f"the model has {labels} labels; choose one: label=")
        if chosen is not None and not 0 <= chosen < labels:
            raise Unjudged(f"the model has {labels} labels and none is {chosen}")
        return chosen or 0

    def _make_reader(self) -> Reader:
        name = f"reward model {self._transport.url}"
        path, window = self._settings.tokenizer, _UNTOLD
        if self.api == "openrlhf":
            if not path:
                raise UsageError(f"{name}: openrlhf is sent rendered text; pass tokenizer=")
        elif self._settings.check or not (path and self.model):
            root, window = self._served(name)
            path = path or root
        tokenizer = load_tokenizer(path, f"{name} (tokenizer=)")
        reader = Reader(tokenizer, window, self._settings, name)
        if self.api == "vllm" and self._settings.check:
            self._check_tokenizer(reader, path)
        return reader

    def _served(self, name: str) -> tuple[str, int]:
        """Folder and window of the model, as the server tells them; sets ``model``."""
        status, answer = self._transport.ask("GET", "/v1/models")
        try:
            served = {one["id"]: one for one in answer["data"]}
            first = next(iter(served))
        except (KeyError, TypeError, StopIteration):
            raise UsageError(
                f"{name}: GET /v1/models answered {status}, which is no vLLM server; for another "
                "kind pass api='scores' or 'openrlhf'"
            ) from None
        self.model = self.model or first
        if self.model not in served:
            raise UsageError(
                f"{name} does not serve {self.model!r}.{did_you_mean(self.model, served)}"
            )
        one = served[self.model]
        return str(one.get("root") or one["id"]), int(one.get("max_model_len") or _UNTOLD)

    def _check_tokenizer(self, reader: Reader, path: str) -> None:
        text = reader.render(PROBE)
        special = self._settings.template == PLAIN
        body = {"model": self.model, "prompt": text, "add_special_tokens": special}
        status, answer = self._transport.ask("POST", "/tokenize", body)
        if status != 200 or not isinstance(answer, Mapping):
            return  # a server without this route
        if list(answer.get("tokens", ())) != list(reader.encode(text)["input_ids"]):
            raise UsageError(
                f"reward model: the tokenizer in {path} and that of {self._transport.url} make "
                "different tokens of one text: pass the served model's as tokenizer="
            )

    def _check_probe(self) -> None:
        if self.api == "vllm":
            _, version = self._transport.ask("GET", "/version")
            told = str(version.get("version", "")) if isinstance(version, Mapping) else ""
            numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", told)
            if numbers and tuple(map(int, numbers.groups())) < _OLDEST_VLLM:
                raise UsageError(f"reward model: vLLM {told} gives no raw logits; it needs 0.11.2")
        status, answer = self._transport.ask("POST", self._path, self._body(PROBE)[0])
        where = f"reward model: POST {self._transport.url}{self._path}"
        if status == 404 and self.api == "vllm":
            raise UsageError(
                f"{where}: no such route; start vLLM with --runner pooling --convert classify"
            )
        if status != 200:
            raise UsageError(f"{where} answered {status} to a probe: {answer!r:.300}")
        try:
            self._value(answer)
        except Unjudged as failure:
            raise UsageError(f"{where}: {failure}") from failure


def address(url: str, api: str) -> tuple[str, str, str]:
    """Base, path and api of what people paste. Raises UsageError for what is no address."""
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"reward model: {url!r:.200} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"reward model: {url!r:.200} is no URL; write http://host:port")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            "reward model: the URL must hold neither a password nor a query; put a key into an "
            "environment variable and name it with api_key_env="
        )
    path = parts.path.rstrip("/")
    if api == "auto":
        api = _API_OF_PATH.get(path, "scores")
    base = f"{parts.scheme}://{parts.netloc}"
    if api != "vllm":
        return base, path, api
    return base + path.removesuffix("/classify").removesuffix("/v1"), "/classify", api


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of 400 digits
        return False
