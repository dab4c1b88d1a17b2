"""``posttrain chat``: a conversation in the terminal, with a server or a checkpoint.

Decides what is kept: the messages, the settings, and what was written before an answer was stopped.
Ctrl-C stops the answer; at the prompt, like the end of the input, it ends the conversation. Without
a terminal it reads lines and writes answers, so that it can be used in a pipe. Answers go to
standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import httpx

from posttrain.errors import RunError, UsageError
from posttrain.serving.checks import window_of
from posttrain.serving.gate import KEY_VARIABLE

HELP = """\
/reset             forget the conversation
/system [TEXT]     show or set the system message, and begin anew
/temperature [T]   show or set the temperature; "default" is the checkpoint's own
/save FILE         write the conversation as one line of JSON, as `posttrain.sft` reads it
/quit              or the end of the input"""

_HERE = ("127.0.0.1", "localhost", "::1")
Chunk = dict[str, Any]


class Model(Protocol):
    """What one talks to."""

    name: str

    def chunks(self, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        """The chunks of a streamed chat completion."""
        ...

    async def close(self) -> None: ...


def converse(options: argparse.Namespace) -> int:
    """Talk until the input ends. Raises UsageError and RunError."""
    with asyncio.Runner() as runner:
        model = runner.run(_reach(options))
        try:
            talk = Talk(model, options.system, options.temperature, options.max_tokens)
            _say(f"{model.name}; /help lists the commands")
            while (line := _read_line()) is not None and talk.take(line, runner):
                pass
        finally:
            runner.run(model.close())
    return 0


class Talk:
    """The conversation so far."""

    def __init__(
        self, model: Model, system: str, temperature: float | None, max_tokens: int | None
    ) -> None:
        self._model = model
        self._system, self._temperature, self._max_tokens = system, temperature, max_tokens
        self.messages: list[dict[str, str]] = []
        self._begin()

    def take(self, line: str, runner: asyncio.Runner) -> bool:
        """Obey a command or answer a message. False: the conversation is over."""
        line = line.strip()
        if line.startswith("/"):
            return self._command(line)
        if line:
            self._exchange(line, runner)
        return True

    def _begin(self) -> None:
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def _exchange(self, text: str, runner: asyncio.Runner) -> None:
        self.messages.append({"role": "user", "content": text})
        written: list[str] = []
        try:
            runner.run(self._answer(written))
        except KeyboardInterrupt:
            print(flush=True)
            _say("stopped")
        except RunError as error:
            _say(str(error))
        if written:
            self.messages.append({"role": "assistant", "content": "".join(written)})
        else:
            self.messages.pop()  # nothing was answered, so nothing was asked

    async def _answer(self, written: list[str]) -> None:
        body = {"messages": self.messages, "stream": True, "model": self._model.name}
        body |= {"stream_options": {"include_usage": True}}
        if self._temperature is not None:
            body["temperature"] = self._temperature
        if self._max_tokens is not None:
            body["max_completion_tokens"] = self._max_tokens
        began, first = time.perf_counter(), 0.0
        usage: dict[str, int] = {}
        async for chunk in self._model.chunks(body):
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    first = first or time.perf_counter()
                    written.append(text)
                    print(text, end="", flush=True)
        print(flush=True)
        _say(_pace(usage.get("completion_tokens", len(written)), began, first))

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/reset":
                self._begin()
                _say("a new conversation")
            case "/system":
                self._set_system(rest)
            case "/temperature":
                self._set_temperature(rest)
            case "/save":
                self._save(rest)
            case "/quit" | "/exit":
                return False
            case _:
                _say(HELP if name == "/help" else f"there is no command {name}\n{HELP}")
        return True

    def _set_system(self, text: str) -> None:
        if text:
            self._system = text
            self._begin()
        _say(f"system: {self._system or '(none)'}")

    def _set_temperature(self, text: str) -> None:
        try:
            if text:
                value = None if text == "default" else float(text)
                if value is not None and not 0 <= value <= 100:
                    raise ValueError
                self._temperature = value
        except ValueError:
            _say(f"a temperature is a number from 0 to 100, not {text!r}")
            return
        shown = "the checkpoint's own" if self._temperature is None else f"{self._temperature:g}"
        _say(f"temperature: {shown}")

    def _save(self, name: str) -> None:
        if not name:
            _say("/save needs the name of a file")
            return
        try:
            with Path(name).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            _say(f"{name} can't be written: {error.strerror}")
            return
        _say(f"saved to {name}")


def _pace(tokens: int, began: float, first: float) -> str:
    """How fast it was: the wait for the first token, and the tokens after it by second."""
    now = time.perf_counter()
    if tokens < 2 or not first:
        return f"[{tokens} tokens, {now - began:.2f} s]"
    rate = (tokens - 1) / max(now - first, 1e-9)
    return f"[{tokens} tokens, first after {first - began:.2f} s, {rate:.0f} tokens/s]"


def _read_line() -> str | None:
    """The next line of input; None at its end, and at Ctrl-C."""
    try:
        if not sys.stdin.isatty():
            return sys.stdin.readline() or None
        import readline  # noqa: F401 - input() then has a history and can be edited

        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# models


async def _reach(options: argparse.Namespace) -> Model:
    if options.model.startswith(("http://", "https://")):
        return await Remote.reach(options.model, options.name)
    return Local(options)


class Remote:
    """A server that speaks OpenAI's protocol."""

    def __init__(self, http: httpx.AsyncClient, name: str) -> None:
        self._http, self.name = http, name

    @classmethod
    async def reach(cls, url: str, name: str | None) -> Remote:
        """Connect, and ask for the model's name where it was not given. Raises UsageError."""
        url = url.rstrip("/")
        url = url if url.endswith("/v1") else url + "/v1"
        key = os.environ.get(KEY_VARIABLE) or os.environ.get("OPENAI_API_KEY")
        http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=5.0),  # a person waits, and has Ctrl-C
            trust_env=httpx.URL(url).host not in _HERE,  # no proxy on the way to this machine
        )
        try:
            return cls(http, await _model_name(http, url, name))
        except BaseException:
            await http.aclose()
            raise

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        try:
            async with self._http.stream("POST", "/chat/completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise RunError(f"the server refused: {_why(response)}")
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield _checked(json.loads(line[6:]))
        except httpx.TransportError as error:
            raise RunError(f"the connection broke: {error!r}") from error

    async def close(self) -> None:
        await self._http.aclose()


async def _model_name(http: httpx.AsyncClient, url: str, wanted: str | None) -> str:
    try:
        response = await http.get("/models", timeout=10.0)
    except httpx.TransportError as error:
        raise UsageError(f"no server answers at {url}: {error!r}") from error
    if response.status_code != 200:
        raise UsageError(f"{url}/models answered {response.status_code}: {_why(response)}")
    try:
        names = [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{url} does not speak OpenAI's protocol: {error!r}") from error
    if wanted is not None and wanted not in names:
        raise UsageError(f"{url} has no model {wanted!r}; it has: {', '.join(names)}")
    return wanted or names[0]


class Local:
    """A checkpoint in this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        from posttrain.serving.service import load_service

        window = window_of(options.model, options.max_model_len)
        self.name = Path(options.model).resolve().name
        self._service = load_service(
            options.model, name=self.name, dtype=options.dtype, window=window, rows=1
        )

    async def chunks(self, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        from posttrain.serving.protocol import ChatRequest, RequestError, read

        try:
            request = read(ChatRequest, body)
            answer, asks = self._service.answer(request)
        except RequestError as error:
            raise RunError(str(error)) from error
        async for piece in self._service.pieces(request, answer, asks):
            yield answer.chunk(piece)
        yield answer.last_chunk()

    async def close(self) -> None:
        await self._service.decoder.close()


def _checked(chunk: Chunk) -> Chunk:
    if "error" in chunk:
        raise RunError(f"the server failed: {chunk['error'].get('message')}")
    return chunk


def _why(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
