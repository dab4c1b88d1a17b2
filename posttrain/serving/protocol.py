"""Reads OpenAI requests: which fields there are, what they may be, and how a wrong one is refused.

Everything that would change the answer and is not done is refused by name, never ignored; what
cannot change it (``user``, ``metadata``) is let pass. A field that is null counts as left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

# Fields of OpenAI's that are accepted because they say nothing about the answer.
_HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Fields whose value is neutral: asking for nothing is not asking.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
MOST_CHOICES = 64
MOST_STOPS = 16


class RequestError(Exception):
    """The request can't be done. ``param`` names the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False
    include_obfuscation: bool = False  # of no meaning without an eavesdropper on the sizes


class _Sampled(BaseModel):
    """What both kinds of request have in common. None: as the checkpoint says."""

    model_config = ConfigDict(extra="forbid")

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: list[str] = []
    return_token_ids: bool = False  # vLLM's: the ids beside the text

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {
            name: value
            for name, value in given.items()
            if value is not None and name not in _HARMLESS
            if not (name in _NEUTRAL and value in _NEUTRAL[name])
        }

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        stops = [given] if isinstance(given, str) else given
        if isinstance(stops, list) and ("" in stops or len(stops) > MOST_STOPS):
            raise ValueError(f"between 1 and {MOST_STOPS} strings, none of them empty")
        return stops

    @property
    def n_alternatives(self) -> int:
        raise NotImplementedError

    @property
    def wants_logprobs(self) -> bool:
        raise NotImplementedError


class Part(BaseModel):
    """A piece of a message's content; only text is understood."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of the conversation, as the template gets it."""

    model_config = ConfigDict(extra="forbid")
    role: str
    content: str | list[Part]

    @model_validator(mode="before")
    @classmethod
    def _as_an_answer_came(cls, given: Any) -> Any:
        """A client sends an answer back with all its fields, most of them null or empty."""
        if not isinstance(given, dict):
            return given
        return {n: v for n, v in given.items() if n in ("role", "content") or v not in (None, [])}

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(_Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0

    @property
    def n_alternatives(self) -> int:
        return self.top_logprobs if self.logprobs else 0

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs


class TextRequest(_Sampled):
    """``POST /v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def n_alternatives(self) -> int:
        return self.logprobs or 0

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None


R = TypeVar("R", bound=_Sampled)


def read(kind: type[R], body: Any) -> R:
    """The request. Raises RequestError naming the first field that is wrong."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _worded(error) from error


def _worded(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"] if not str(part).startswith(("list[", "str"))]
    param = ".".join(where) or None
    if first["type"] == "extra_forbidden":
        return RequestError(400, f"{param} is not supported by this server", param)
    if first["type"] == "missing":
        return RequestError(400, f"{param} is required", param)
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return RequestError(400, f"{param or 'the body'}: {message}, got {shown}", param)
