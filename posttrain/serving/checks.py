"""What is refused before a server starts.

Decides who may reach it: this machine, unless there is an API key.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os

from posttrain.errors import UsageError
from posttrain.serving.gate import KEY_VARIABLE

INSTALL = "pip install 'posttrain[serve]'"
_LONGEST_WINDOW = 32768  # tokens; a larger one is taken only when asked for


def check_host(host: str) -> None:
    """Raises UsageError for an address that others can reach, where there is no key."""
    if host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UsageError(f"--host {host!r} is not an IP address") from error
    if not local and not os.environ.get(KEY_VARIABLE):
        raise UsageError(
            f"--host {host} lets others use the model: set the environment variable "
            f"{KEY_VARIABLE} to a key that they have to send, or keep to 127.0.0.1"
        )


def window_of(checkpoint: str, asked: int) -> int:
    """The window in tokens. Raises UsageError for what is no checkpoint, or a window too wide."""
    from posttrain.preflight import read_config

    config = read_config(checkpoint).get_text_config()
    own = int(getattr(config, "max_position_embeddings", _LONGEST_WINDOW))
    if asked > own:
        raise UsageError(f"--max-model-len {asked}: the model's window is {own} tokens")
    return asked or min(own, _LONGEST_WINDOW)


def engine_of(asked: str) -> str:
    """ "vllm" or "embedded"; raises UsageError when what it needs is not installed."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    if asked == "vllm" and not has_vllm:
        from posttrain.engines import server

        raise UsageError(f"vLLM is not installed: {server.INSTALL}; or take --engine embedded")
    if asked == "vllm" or (asked == "auto" and has_vllm):
        return "vllm"
    missing = [p for p in ("starlette", "uvicorn") if importlib.util.find_spec(p) is None]
    if missing:
        raise UsageError(f"the server needs {' and '.join(missing)}: {INSTALL}")
    return "embedded"
