"""``posttrain merge`` and ``posttrain export``: their options, and what they print.

One line of JSON on standard output; what is being done goes to the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from posttrain.errors import UsageError

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_parsers(commands: Any) -> None:
    """``merge`` and ``export``, on the parser of the command line."""
    merge = commands.add_parser("merge", help="make a checkpoint of a PEFT adapter and its base")
    merge.add_argument("adapter", type=Path)
    merge.add_argument("--base", help="full-precision checkpoint (default: the adapter's own)")
    merge.add_argument("--out", type=Path, required=True, help="new folder")
    merge.add_argument("--dtype", choices=_DTYPES, default="auto", help="auto: the base's")
    merge.add_argument("--max-shard", default="5GB", help="size of one weights file")
    merge.add_argument(
        "--tolerance", type=float, default=1e-3, help="of any log-prob, merged against unmerged"
    )
    merge.set_defaults(run=_merge)

    export = commands.add_parser("export", help="a checkpoint to hand on: dtype, 8 or 4 bits, card")
    export.add_argument("checkpoint", type=Path, help="or an adapter, which is merged")
    export.add_argument("--base", help="of an adapter (default: the adapter's own)")
    export.add_argument("--out", type=Path, required=True, help="new folder")
    export.add_argument("--dtype", choices=_DTYPES, default="auto", help="auto: as it is")
    export.add_argument("--quantize", choices=("int8", "int4"), default="", help="linear layers")
    export.add_argument(
        "--gguf", choices=("f32", "f16", "q8_0"), default="", help="also such a file"
    )
    export.add_argument("--max-shard", default="5GB", help="size of one weights file")
    export.add_argument("--name", default="", help="in the card (default: the folder's name)")
    export.add_argument("--licence", default="", help="SPDX identifier, for the card")
    export.add_argument("--text", type=Path, help="for perplexity: text, or .jsonl of messages")
    export.add_argument("--tasks", type=int, default=200, help="of the run, played; 0: none")
    export.add_argument(
        "--env-args", default="", help="JSON, where the run's environment was a Python object"
    )
    export.set_defaults(run=_export)


def _merge(options: argparse.Namespace) -> int:
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars, of no use to anybody here
    from posttrain.export.checkpoint import dtype_of
    from posttrain.export.merge import merge, write_merged
    from posttrain.storage.new_folder import check_free, new_folder

    check_free(options.out)
    merged = merge(options.adapter, options.base, tolerance=options.tolerance)
    dtype = dtype_of(merged.base) if options.dtype == "auto" else options.dtype
    with new_folder(options.out) as folder:
        rounding = write_merged(merged, folder, dtype, options.max_shard)
    for note in merged.notes:
        _say(f"note: {note}")
    result = {
        "out": str(options.out),
        "base": merged.base,
        "dtype": dtype,
        "largest_gap": merged.largest_gap,
        "mean_gap": merged.mean_gap,
        "rounding_gap": rounding,
        "adapter_effect": merged.effect,
    }
    print(json.dumps(result))
    return 0


def _export(options: argparse.Namespace) -> int:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from posttrain.export.export import Wishes, export

    names = {field.name for field in dataclasses.fields(Wishes)} - {"env", "env_args"}
    wishes = Wishes(
        **{name: getattr(options, name) for name in names},
        env_args=_object(options.env_args, "--env-args"),
    )
    done = export(options.checkpoint, options.out, wishes, say=_say)
    for note in done.notes:
        _say(f"note: {note}")
    before, after = done.before, done.after
    result = {
        "out": str(done.path),
        "megabytes": [round(size, 3) for size in done.megabytes],
        "perplexity": {n: [before.perplexity[n], p] for n, p in after.perplexity.items()},
        "accuracy": [one.tasks.accuracy if one.tasks else None for one in (before, after)],
    }
    print(json.dumps(result))
    return 0


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise UsageError(f"{option} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f'{option} must be an object, as in {{"min_terms": 4}}')
    return found


def _say(text: str) -> None:
    print(f"posttrain: {text}", file=sys.stderr, flush=True)
