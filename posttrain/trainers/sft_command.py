"""``posttrain sft``: supervised fine-tuning from a TOML file, from overrides, or from both.

Under a launcher (torchrun, deepspeed) every rank runs this same command.
"""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any) -> None:
    """The command's arguments."""
    sft = commands.add_parser("sft", help="fine-tune on conversations from a TOML file")
    sft.add_argument("config", nargs="?", help="TOML file; may be left out when overrides say all")
    sft.add_argument("overrides", nargs="*", help="key=value, e.g. steps=50 lora.rank=16")
    sft.add_argument(
        "--preview", action="store_true", help="show the first examples and the report, and stop"
    )
    sft.add_argument("--settings", action="store_true", help="list every setting, and stop")
    sft.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the result's record in one line of JSON; exit codes as everywhere."""
    from posttrain.trainers.sft_settings import SftConfig, SftSettings, load_sft_config

    if options.settings:
        return _list(SftConfig)
    path, overrides = options.config, options.overrides
    if path is not None and "=" in path:
        path, overrides = None, [path, *overrides]
    config = load_sft_config(path, overrides)
    settings = SftSettings(**config.model_dump(include=set(SftSettings.model_fields)))
    data = config.data or None
    if options.preview:
        return _preview(config.model, data, settings, config.seed)
    from posttrain.trainers.settings import main_rank
    from posttrain.trainers.sft import sft

    out = sft(config.model, data, config.out_dir, settings, seed=config.seed)
    if main_rank():
        record = json.loads((out / "sft.json").read_text())
        names = ("loss", "steps", "tokens", "seconds")
        print(json.dumps({"model": str(out), **{name: record[name] for name in names}}))
    return 0


def _preview(model: str, data: str | None, settings: Any, seed: int) -> int:
    import sys

    from posttrain.trainers.preview import show
    from posttrain.trainers.sft import prepare

    ready = prepare(model, data, settings, seed=seed)
    show(ready.shown, ready.report, sys.stdout)
    return 0


def _list(config: Any) -> int:
    from posttrain.config import settings_table

    for name, default, description in settings_table(config):
        print(f"{name:18} {default!r:>12}  {description}")
    return 0
