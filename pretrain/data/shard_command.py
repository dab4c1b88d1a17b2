"""``pretrain shards`` tokenises documents; ``pretrain mix`` shows what a stream will read."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.errors import UsageError

if TYPE_CHECKING:
    from pretrain.data.stream import Stream


def add_parser(commands: Any) -> None:
    """The arguments of both."""
    shards = commands.add_parser(
        "shards",
        help="documents to tokenised shards",
        description="Tokenise a folder of NNNNN.jsonl.gz; the same command goes on.",
    )
    shards.add_argument("documents", help="folder of NNNNN.jsonl.gz")
    shards.add_argument("out", help="new folder")
    shards.add_argument("--tokenizer", required=True, metavar="FOLDER")
    shards.add_argument("--language", help="of documents that don't say theirs (unknown)")
    shards.add_argument("--domain", help="likewise (text)")
    shards.add_argument("--end-token", help="ends each document (the tokenizer's own)")
    shards.add_argument(
        "--read-special",
        action="store_true",
        default=None,
        help="special tokens in a document are tokens, not text",
    )
    shards.add_argument("--fim-rate", type=float, help="share rearranged to fill in the middle")
    shards.add_argument("--spm-share", type=float, help="of those, suffix first (0.5)")
    shards.add_argument("--fim-domain", action="append", help="whose documents (code)")
    shards.add_argument("--seed", type=int)
    shards.add_argument("--processes", type=int)
    shards.set_defaults(run=run_shards)
    mix = commands.add_parser(
        "mix",
        help="what a stream of shards will read",
        description="Check shards and settings (a TOML file), and show shares and epochs.",
    )
    mix.add_argument("settings", help="TOML: shards, phases, max_epochs, across_documents")
    mix.add_argument("--tokenizer", default="", metavar="FOLDER", help="that it must be made with")
    mix.set_defaults(run=run_mix)


def run_shards(options: argparse.Namespace) -> int:
    """Write the shards and say what is in them."""
    from pretrain.data.shard_writer import shards_stage

    fim = {"rate": options.fim_rate, "spm_share": options.spm_share, "domains": options.fim_domain}
    if options.fim_rate is None and any(value is not None for value in fim.values()):
        raise UsageError("--spm-share and --fim-domain need --fim-rate")
    names = ("tokenizer", "language", "domain", "end_token", "read_special", "seed", "processes")
    settings = {name: getattr(options, name) for name in names}
    if options.fim_rate is not None:
        settings["fim"] = {name: value for name, value in fim.items() if value is not None}
    given = {name: value for name, value in settings.items() if value is not None}
    shards = shards_stage(Path(options.documents), Path(options.out), given)
    for name, source in shards.manifest["sources"].items():
        print(f"{name:30} {source['documents']:>12,} documents {source['tokens']:>16,} tokens")
    return 0


def run_mix(options: argparse.Namespace) -> int:
    """Check everything that the stream reads, and print its plan."""
    from pretrain.data.stream import Stream, StreamSettings

    try:
        values = tomllib.loads(Path(options.settings).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"can't read {options.settings}: {error}") from error
    stream = Stream(StreamSettings(**values), seed=0, tokenizer=options.tokenizer)
    print(plan_text(stream))
    return 0


def plan_text(stream: Stream) -> str:
    """Phases and sources, one line each: rows, share, epochs so far."""
    lines, tokens = [], dict.fromkeys(stream.sources, 0)
    for number, plan in enumerate(stream.plans, 1):
        phase = plan.phase
        lines.append(
            f"phase {number} {phase.name}: {phase.steps:,} steps of {phase.rows} x {phase.length} "
            f"from step {plan.first_step:,}; {phase.tokens:,} tokens"
        )
        for i, name in enumerate(stream.sources):
            if not (count := int(plan.mixture.counts[i])):
                continue
            tokens[name] += count * phase.length
            lines.append(
                f"  {name:28} {plan.shares[i]:7.2%} {count:>12,} rows; "
                f"{plan.epochs[i]:.2f} epochs here, "
                f"{tokens[name] / stream.source_tokens[i]:.2f} with the phases before"
            )
    return "\n".join(lines)
