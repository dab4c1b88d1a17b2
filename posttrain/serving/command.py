"""``posttrain serve`` and ``posttrain chat``: their options, and the servers behind them.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.addresses import hold_port
from posttrain.serving.checks import check_host, engine_of, window_of

if TYPE_CHECKING:
    from posttrain.serving.vllm_front import Front


def add_parsers(commands: Any) -> None:
    """``serve`` and ``chat``, on the parser of the command line."""
    serve = commands.add_parser("serve", help="an OpenAI-compatible server of a checkpoint")
    serve.add_argument("checkpoint", help="folder or hub name")
    serve.add_argument("--host", default="127.0.0.1", help="another than loopback needs a key")
    serve.add_argument("--port", type=int, default=8000, help="0: any that is free")
    serve.add_argument("--engine", choices=("auto", "vllm", "embedded"), default="auto")
    serve.add_argument("--name", help="of the model in requests (default: the folder's name)")
    serve.add_argument("--log", type=Path, help="file for vLLM's log (default: a temporary one)")
    serve.add_argument("--kv-cache-gib", type=float, default=1.0, help="vLLM on a CPU only")
    _model_options(serve)
    serve.set_defaults(run=_serve)

    chat = commands.add_parser("chat", help="talk to a checkpoint or a server in the terminal")
    chat.add_argument("model", metavar="CHECKPOINT_OR_URL", help="folder, hub name or http://...")
    chat.add_argument("--system", default="", help="the system message")
    chat.add_argument("--temperature", type=float, help="default: the checkpoint's own")
    chat.add_argument("--max-tokens", type=int, help="of one answer (default: what the window has)")
    chat.add_argument("--name", help="of the model on the server (default: its first)")
    _model_options(chat)
    chat.set_defaults(run=_chat)


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    parser.add_argument("--max-model-len", type=int, default=0, help="window in tokens; 0: own")
    parser.add_argument("--max-batch", type=int, default=64, help="completions computed at once")


def _serve(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C, which is the ordinary end. Raises UsageError and RunError."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars
    check_host(options.host)
    engine = engine_of(options.engine)
    window = window_of(options.checkpoint, options.max_model_len)
    name = options.name or Path(options.checkpoint).resolve().name
    taken = hold_port(options.host, options.port)  # to the end: vLLM binds it again
    try:
        if engine == "vllm":
            asyncio.run(_with_vllm(options, window, name, taken.getsockname()[1]))
        else:
            _with_embedded(options, window, name, taken)
    except KeyboardInterrupt:
        print("posttrain: the server has ended", file=sys.stderr)
    finally:
        taken.close()
    return 0


def _announce(name: str, engine: str, host: str, port: int) -> None:
    """The address on standard output, for programs; the rest is for people."""
    print(f"posttrain: {name} is served by the {engine} engine; Ctrl-C ends it", file=sys.stderr)
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)


# engines


async def _with_vllm(options: argparse.Namespace, window: int, name: str, port: int) -> None:
    from posttrain.engines.server import ServerSpec, device_of_vllm
    from posttrain.export.checkpoint import dtype_of
    from posttrain.serving.vllm_front import PublicServer

    log = options.log or Path(tempfile.gettempdir()) / f"posttrain-serve-{port}.log"
    spec = ServerSpec(
        model=options.checkpoint,
        log_path=log,
        host=options.host,
        port=port,
        dtype=dtype_of(options.checkpoint) if options.dtype == "auto" else options.dtype,
        max_model_len=window,
        max_num_seqs=options.max_batch,
        threads=len(os.sched_getaffinity(0)),
        kv_cache_gib=options.kv_cache_gib,
        device=device_of_vllm(),
    )
    server = PublicServer(spec, _front(options.checkpoint, name))
    print(f"posttrain: starting vLLM; its log is {log}", file=sys.stderr)
    try:
        await server.start()
        _announce(name, "vllm", options.host, port)
        await server.watch()
    finally:
        await server.stop()


def _with_embedded(
    options: argparse.Namespace, window: int, name: str, taken: socket.socket
) -> None:
    import uvicorn

    from posttrain.serving.app import make_app
    from posttrain.serving.service import load_service

    service = load_service(
        options.checkpoint, name=name, dtype=options.dtype, window=window, rows=options.max_batch
    )
    if service.defaults.not_applied:
        asked = ", ".join(service.defaults.not_applied)
        print(f"posttrain: not applied by this engine: {asked}", file=sys.stderr)
    taken.listen()
    _announce(name, "embedded", *taken.getsockname()[:2])
    config = uvicorn.Config(
        make_app(service), log_level="warning", access_log=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[taken])


def _front(checkpoint: str, name: str) -> Front:
    """What the checkpoint's tokenizer says of how it is to be served."""
    from transformers import GenerationConfig

    from posttrain.chat import end_ids
    from posttrain.export.checkpoint import load_tokenizer
    from posttrain.serving.vllm_front import Front, tool_parser_of

    tokenizer = load_tokenizer(checkpoint)
    try:
        generation = GenerationConfig.from_pretrained(checkpoint)
    except OSError:  # it has no generation_config.json
        generation = GenerationConfig()
    parser = tool_parser_of(tokenizer.chat_template or "")
    return Front(name, end_ids(tokenizer, generation), parser)


def _chat(options: argparse.Namespace) -> int:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from posttrain.serving.terminal import converse

    return converse(options)
