"""vLLM's OpenAI-compatible server for users, behind the gate.

Decides the command line, and who reads tool calls: vLLM's parser of the template's own format.
Unlike a rollout server it has no development routes, keeps the
checkpoint's template and generation defaults, and listens where it was told. It runs under the
same guard: it ends with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from envs.tool_formats import format_of
from posttrain.addresses import reachable
from posttrain.engines.server import ServerSpec, VllmServer, cpu_flags, environment
from posttrain.errors import RunError

_WATCH_EVERY_S = 0.5
_TOOL_PARSERS = {"hermes": "hermes", "llama3": "llama3_json", "mistral": "mistral"}


@dataclass(frozen=True, slots=True)
class Front:
    """As what the model is served."""

    name: str
    end_ids: tuple[int, ...]  # the tokens that end a turn
    tool_parser: str = ""  # vLLM's name for how the model writes tool calls; empty: it writes none


class PublicServer(VllmServer):
    """A vLLM server for users."""

    def __init__(self, spec: ServerSpec, front: Front) -> None:
        super().__init__(spec)
        self._front = front

    def reached_at(self) -> str:
        """By this machine, which asks whether it is ready."""
        return reachable({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.spec.host, self.spec.host))

    def command(self, port: int) -> list[str]:
        return public_command(self.spec, self._front, port)

    def environment(self) -> dict[str, str]:
        env = environment(self.spec)
        for name in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            env.pop(name, None)
        return env

    async def watch(self) -> None:
        """Until the server ends, which is an error: nobody asked it to."""
        while self.alive():
            await asyncio.sleep(_WATCH_EVERY_S)
        raise RunError(f"the vLLM server ended\n{self.tail(40)}")


def tool_parser_of(template: str) -> str:
    """vLLM's parser of the tool calls that a chat template teaches; "" where it knows no tools."""
    form = format_of(template)
    if form is None:
        return ""
    if form.name == "deepseek":  # V3 and R1 write the arguments in a fence, V3.1 does not
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    return _TOOL_PARSERS[form.name]


def public_command(spec: ServerSpec, front: Front, port: int) -> list[str]:
    """The command line of a server for users."""
    flags: dict[str, Any] = {
        "--model": spec.model,
        "--served-model-name": front.name,
        "--host": spec.host,
        "--port": port,
        "--dtype": spec.dtype,
        "--max-model-len": spec.max_model_len,
        "--max-num-seqs": spec.max_num_seqs,
        # The end of a turn is the template's business, and not every checkpoint names it.
        "--override-generation-config": json.dumps({"eos_token_id": list(front.end_ids)}),
        "--middleware": "posttrain.serving.gate.Gate",
        "--uvicorn-log-level": "warning",
    }
    switches = ["--disable-uvicorn-access-log"]
    if front.tool_parser:
        flags["--tool-call-parser"] = front.tool_parser
        switches.append("--enable-auto-tool-choice")
    if spec.device == "cpu":
        # Imported in the worker, it asks the kernel for AMX; its methods have no route here.
        flags["--worker-extension-cls"] = spec.worker_extension
        flags["--kv-cache-memory-bytes"] = int(spec.kv_cache_gib * 2**30)
        more_flags, more_switches = cpu_flags(spec)
        flags |= more_flags
        switches += more_switches
    pairs = [text for flag, value in flags.items() for text in (flag, str(value))]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *switches]
